"""What the documents say is what the code does: the example runs, the tables are the committed results."""

import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys

import pytest
import reference
from pages import FENCE, ROOT, code_of

CARDS = sorted(ROOT.glob("src/metaprune/methods/*/card.md"))


def test_tables_are_generated_from_the_results():
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/tables.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, "run: python benchmarks/tables.py"


def test_curves_are_drawn_from_the_results(tmp_path):
    script = ROOT / "benchmarks/metagraph/plots.py"
    subprocess.run([sys.executable, str(script), "--out", str(tmp_path / "curves.html")], check=True)
    assert "no rewrite (any)" in (tmp_path / "curves.html").read_text()


@pytest.mark.parametrize(
    "path",
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("benchmarks/*.md"),
        *CARDS,
        *ROOT.glob("examples/*/*.md"),
    ],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_links_in_documents_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)", FENCE.sub("", path.read_text())):
        made = path.parent.joinpath(target).resolve()
        assert made.exists() or made in {ROOT / "docs" / page for page in reference.pages()}, target


@pytest.mark.parametrize("path", sorted(ROOT.glob("benchmarks/**/*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_benchmarks_import_what_there_is(path):
    nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
    for node in nodes:
        if node.module is None or node.module.split(".")[0] != "metaprune":
            continue
        module = importlib.import_module(node.module)
        for alias in node.names:
            has = hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}")
            assert has, f"{node.module} has no {alias.name}"


def test_recipes_read():
    from metaprune.runs.config import read_recipe

    recipes = [read_recipe(path) for path in (ROOT / "recipes").glob("*.toml")]
    assert recipes and all(recipe.budget.to_dict() for recipe in recipes)


def test_cards_hold_the_options_of_their_method():
    from metaprune.protocol.card import with_options
    from metaprune.protocol.registry import method_names, method_spec

    named = [spec for spec in map(method_spec, method_names()) if spec.card is not None]
    assert len(named) == len(CARDS) == 3
    for spec in named:
        text = spec.card_path().read_text()
        assert text == with_options(text, spec.config_class()), "run: python -m metaprune.protocol.card"


def _shown_commands():
    """Every command of metaprune in a code block of a document, with the page that shows it."""
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *CARDS, ROOT / "examples/jobs/README.md"]:
        for _, code in FENCE.findall(page.read_text()):
            for line in code.replace("\\\n", " ").splitlines():
                words = [] if "$" in line else line.removeprefix("PYTHONPATH=. ").split()
                if words[:1] == ["metaprune"]:
                    arguments = shlex.split(line.partition("metaprune ")[2], comments=True)
                    yield f"{page.relative_to(ROOT)}: {shlex.join(arguments)}", arguments


@pytest.mark.parametrize("arguments", [pytest.param(a, id=name) for name, a in _shown_commands()])
def test_commands_in_documents_are_understood(arguments):
    """Verbs and flags are there, and values are of their type."""
    from metaprune.cli.main import parsed

    assert hasattr(parsed([a for a in arguments if a != "..."]), "run")


def test_the_rule_on_its_page_is_that_of_the_source():
    (block,) = code_of("docs/rules.md")
    assert block.strip() in "".join(p.read_text() for p in (ROOT / "src/metaprune/graph/rules").glob("*.py"))


def test_the_guide_names_every_method():
    from metaprune.protocol.registry import METHODS, method_names

    page = (ROOT / "docs/guide.md").read_text()
    assert not [name for name in method_names() if METHODS.is_builtin(name) and f"\n| `{name}` |" not in page]
