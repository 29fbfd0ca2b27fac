"""A method is one package: nothing outside it names it, and the command line knows it without torch."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import metaprune
from metaprune.core.errors import ConfigError
from metaprune.methods import create_method, method_names
from metaprune.protocol.method import completed
from metaprune.protocol.options import MethodOptions
from metaprune.protocol.registry import METHODS, method_spec
from metaprune.protocol.spec import MethodSpec
from metaprune.runs.config import MethodConfig
from metaprune.runs.sections import sections_of
from metaprune.values import Proposal

SRC = Path(metaprune.__file__).parent
LEARNED = {"pruningnet": r"pruning_?net\b", "stamp": r"stamp(?![a-z])", "metagraph": r"meta_?graph"}
BUILDING_BLOCKS = {"weight_masks": r"weight_?masks", "gates": r"methods[./]gates|gatesconfig|['\"]gates['\"]"}
REGISTRY = SRC / "protocol" / "registry.py"


def files_that_name(pattern: str, *without: Path) -> list[str]:
    files = [f for f in SRC.rglob("*") if f.suffix in (".py", ".jinja", ".css") and f != REGISTRY]
    files = [f for f in files if not any(f.is_relative_to(place) for place in without)]
    return [str(f.relative_to(SRC)) for f in files if re.search(pattern, f.read_text(), re.IGNORECASE)]


@pytest.mark.parametrize("name", LEARNED)
def test_no_file_outside_a_learned_method_names_it(name):
    assert files_that_name(LEARNED[name], SRC / "methods" / name) == []


@pytest.mark.parametrize("name", BUILDING_BLOCKS)
def test_only_other_methods_build_on_a_method(name):
    assert files_that_name(BUILDING_BLOCKS[name], SRC / "methods") == []


def test_the_registry_is_the_list_of_all():
    assert {*LEARNED, *BUILDING_BLOCKS} < set(method_names())
    assert files_that_name("metaprune.methods.criteria", SRC / "methods") == []


@pytest.mark.parametrize("name", method_names())
def test_the_spec_agrees_with_the_class(name):
    spec = METHODS.get(name)
    assert isinstance(spec, MethodSpec) and spec.name == name
    kind, config = spec.method_class(), spec.config_class()
    assert issubclass(config, MethodOptions) and issubclass(kind, config)
    assert kind.name == name and spec.about()
    assert spec.learned == hasattr(kind, "fit") and bool(spec.next_step) == spec.learned
    assert spec.section({}) is None and all(hasattr(verb, "run") for verb in spec.load_verbs().values())


def test_specs_options_and_verbs_are_read_without_torch():
    code = (
        "import sys\n"
        "from metaprune.protocol.registry import method_names, method_spec, resolved_options\n"
        "for n in method_names():\n"
        "    spec = method_spec(n); spec.load_verbs(), spec.about(), resolved_options(n, {})\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------------------------------------------- names and options


def test_an_old_name_warns_and_works():
    with pytest.warns(FutureWarning, match="'weights' is called 'weight_masks' now"):
        assert create_method("weights").name == "weight_masks"
    with pytest.warns(FutureWarning, match="weight_masks"):
        assert MethodConfig(name="weights").name == "weight_masks"


def test_a_recipe_holds_all_options():
    assert MethodConfig(name="taylor", options={"batches": 3}).options == {
        "scope": "global",
        "allocate": "criterion",
        "steps": 1,
        "normalise": "mean",
        "batches": 3,
    }
    assert "fitted" not in MethodConfig(name="stamp").options  # set at run time


@pytest.mark.parametrize("name", method_names())
def test_options_that_were_resolved_resolve_to_themselves(name):
    config = MethodConfig(name=name)
    assert MethodConfig(name=name, options=config.options) == config


def test_a_wrong_option_is_said_when_the_recipe_is_read():
    with pytest.raises(ConfigError, match=r"unknown key magnitude\.q"):
        MethodConfig(name="magnitude", options={"q": 1})
    with pytest.raises(ConfigError, match="Did you mean 'magnitude'"):
        MethodConfig(name="magnitud")


# ---------------------------------------------------------------------------------------------------- others' methods


class Bare:
    """A method of somebody else, without any of the optional members."""

    name, needs_data = "bare", False

    def propose(self, task, budget, rng):
        return Proposal(task.allocator(budget).by_ratio([range(g.width) for g in task.network.space]))


class Careful(Bare):
    shares_work = True

    def recovery(self, kind):
        return "bn"


def test_a_class_alone_is_a_method_and_what_it_lacks_has_defaults():
    method = create_method("python:test_packages:Bare")
    assert method.name == "bare" and not method_spec("python:test_packages:Bare").learned
    assert completed(method).recovery("auto") == "none" and completed(method).many_networks is False
    assert completed(Careful()).recovery("auto") == "bn" and completed(Careful()).shares_work is True
    assert MethodConfig(name="python:test_packages:Bare").options == {}
    with pytest.raises(ConfigError, match="has no options"):
        MethodConfig(name="python:test_packages:Bare", options={"x": 1})


def test_a_report_section_that_fails_is_left_out(monkeypatch, caplog):
    broken = MethodSpec(name="broken", method=Bare, report="no_such_module:section")
    monkeypatch.setitem(METHODS._targets, "broken", broken)
    assert sections_of({}) == [] and "lacks the section of method 'broken'" in caplog.text


def test_a_broken_package_does_not_break_the_command_line(monkeypatch, capsys):
    from metaprune.cli.main import main

    monkeypatch.setitem(
        METHODS._targets, "broken", MethodSpec(name="broken", method=Bare, verbs="no_such_module:VERBS")
    )
    taken = MethodSpec(name="taken", method=Bare, verbs="test_packages:VERBS")
    monkeypatch.setitem(METHODS._targets, "taken", taken)
    assert main(["models"]) == 0
    said = capsys.readouterr()
    assert "zoo:resnet20" in said.out and "its verb 'prune' is taken" in said.err
    assert len([line for line in said.err.splitlines() if "'broken'" in line]) == 1


VERBS = {"prune": Bare}
