"""The public interface: what `metaprune` exports, that the page on it names it all, and that it costs no import."""

import ast
import inspect
import re
import subprocess
import sys

import pytest
from pages import ROOT

import metaprune
from metaprune.core import errors


def test_importing_metaprune_does_not_import_torch():
    code = "import sys, metaprune; dir(metaprune); metaprune.Budget; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", metaprune.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert getattr(metaprune, name) is not None
    assert name in dir(metaprune)
    assert name == "__version__" or f"`{name}`" in (ROOT / "docs/stability.md").read_text()


def test_type_checkers_see_the_same_names():
    tree = ast.parse((ROOT / "src/metaprune/__init__.py").read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {a.name: node.module for node in guarded.body if isinstance(node, ast.ImportFrom) for a in node.names}
    assert seen == metaprune._HOME
    assert sorted(metaprune.__all__) == sorted([*metaprune._HOME, "__version__"])


def test_every_error_class_is_public():
    kinds = {n for n, k in vars(errors).items() if isinstance(k, type) and issubclass(k, Exception)}
    assert kinds <= set(metaprune.__all__)


def test_the_version_stands_in_one_place():
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()
    assert metaprune.__version__ == metaprune._version.__version__


def _public_functions():
    """Every public function, and every public method of a public class, by name."""
    for name in set(metaprune.__all__) - {"__version__"}:
        value = getattr(metaprune, name)
        parts = vars(value).items() if isinstance(value, type) else [("", value)]
        for part, thing in parts:
            function = getattr(thing, "__func__", getattr(thing, "fget", getattr(thing, "func", thing)))
            if inspect.isfunction(function) and not part.startswith("_"):
                yield f"{name}.{part}".rstrip("."), value, part, function


@pytest.mark.parametrize("name, owner, part, function", sorted(_public_functions(), key=lambda found: found[0]))
def test_docstrings_are_complete(name, owner, part, function):
    """There is one, its own or that of a base class, and where it lists arguments it lists them all."""
    text = inspect.getdoc(getattr(owner, part) if part else function)
    assert text, f"{name} has no docstring"
    if function.__doc__ and "Args:" in text:
        listed = re.findall(r"^ {4}(\w+):", text.partition("Args:")[2].partition("\n\n")[0], re.MULTILINE)
        assert [p for p in inspect.signature(function).parameters if p not in ("self", "cls")] == listed
