"""Loops of a user's own: the code of docs/own-loop.md runs, and does to the network what the page says."""

import json

import pytest
import torch
from pages import run_blocks, section_code

PAGE = "docs/own-loop.md"


@pytest.fixture
def page(tmp_path, monkeypatch):
    """Run the code below headings of the page, after what all examples need; returns its names."""
    monkeypatch.chdir(tmp_path)

    def run(*headings):
        blocks = [code for heading in ("Your own training loop", *headings) for code in section_code(PAGE, heading)]
        return run_blocks(blocks, PAGE)

    return run


@pytest.fixture
def trainer_without_datasets(monkeypatch):
    """The folder tests/datasets passes for the package `datasets` here, which Trainer then looks into."""
    module = pytest.importorskip("transformers.trainer")
    monkeypatch.setattr(module, "is_datasets_available", lambda: False)


def _params(model):
    return sum(p.numel() for p in model.parameters())


def test_a_function_recovers(page):
    names = page("A function as the recovery")
    result = names["result"]
    assert result.record["recover"] == {"kind": "own loop"}
    assert _params(result.model) <= _params(names["network"]()) / 2


def test_a_plain_loop_goes_on_with_a_new_optimiser(page, tmp_path):
    names = page("A plain PyTorch loop")
    trained = {id(p) for group in names["optimiser"].param_groups for p in group["params"]}
    assert trained == {id(p) for p in names["result"].model.parameters()}
    loaded = names["mp"].load(tmp_path / "runs/plain", form="graph")
    torch.testing.assert_close(loaded(names["inputs"]), names["model"](names["inputs"]))


@pytest.mark.usefixtures("trainer_without_datasets")
def test_trainer_takes_the_pruned_model(page, tmp_path):
    names = page("Prune, then `Trainer` or Lightning")
    result = names["result"]
    assert type(result.model).__name__ == "LlamaForCausalLM" and result.pruned.form == "module"
    record = json.loads((tmp_path / "runs/pruned-llama/record.json").read_text())
    assert record["history"]["trainer"][-1]["step"] == 4


@pytest.mark.usefixtures("trainer_without_datasets")
def test_callbacks_prune_at_a_step(page, tmp_path):
    pytest.importorskip("pytorch_lightning")
    names = page("Prune at a step of `Trainer` or Lightning")
    inputs, full = names["inputs"], names["network"]()

    pruned = names["pruner"].result
    assert names["trainer"].state.global_step == 6
    assert names["trainer"].model.network is pruned.model and _params(pruned.model) < _params(full)
    loaded = names["mp"].load(tmp_path / "runs/trainer-callback", form="graph")
    torch.testing.assert_close(loaded(inputs), pruned.model(inputs))  # saved after it was trained on
    original = names["mp"].cut(pruned.pruned.network, pruned.plan).model
    assert not torch.equal(original(inputs), pruned.model(inputs))

    masked = names["masker"].result
    assert names["lightning"].global_step == 6
    masks = masked.pruned.network.at(masked.plan).masks(masked.pruned.masks)
    assert masks and all((p[~masks[n]] == 0).all() for n, p in masked.model.named_parameters() if n in masks)
    assert names["lightning"].model.network is masked.model
    assert json.loads((tmp_path / "runs/lightning/record.json").read_text())["masks"]
