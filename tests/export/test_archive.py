"""load(save(x)) = x, bit for bit and in a fresh process; nothing pickled; damage and misuse are named."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import metaprune as mp
from metaprune.core.errors import ConfigError, DataError, DataMissingError, NotAvailableError, WeightsError
from metaprune.core.imports import import_optional
from metaprune.export.archive import load, save
from metaprune.export.inputs import example_inputs
from metaprune.models import create
from metaprune.surgery import cut
from metaprune.testing import TOYS, perturb, random_plan, toy
from metaprune.tracing import trace

SPEC, OPTIONS = "zoo:resnet8", {"num_classes": 10, "in_channels": 1}


def pruned_cnn(form="auto"):
    model = perturb(create(SPEC, **OPTIONS), seed=1).eval()
    network = trace(model, torch.zeros(2, 1, 28, 28))
    return cut(network, random_plan(network.space, 0.5, 0), form=form)


@pytest.mark.parametrize("form", ["module", "graph"])
@pytest.mark.parametrize("loaded", ["auto", "graph"])
def test_bit_for_bit_in_a_fresh_process(tmp_path, form, loaded):
    pruned = pruned_cnn(form)
    save(pruned, tmp_path, spec=SPEC, options=OPTIONS)
    x = torch.randn(3, 1, 28, 28)
    save_file({"x": x, "y": pruned.model(x).detach()}, tmp_path / "io.safetensors")
    code = (
        "import torch, metaprune as mp\nfrom safetensors.torch import load_file\n"
        f"torch.set_num_threads(1)\nio = load_file({str(tmp_path / 'io.safetensors')!r})\n"
        f"model = mp.load({str(tmp_path)!r}, form={loaded!r})\nassert torch.equal(model(io['x']), io['y'])"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_transformers_graph_loads_where_transformers_was_not_imported(tmp_path):
    transformers = import_optional("transformers", "hf")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=20, num_labels=3
    )
    tokens = torch.randint(0, 20, (2, 6), generator=torch.Generator().manual_seed(0))
    network = trace(transformers.BertForSequenceClassification(config).eval(), None, {"input_ids": tokens})
    pruned = cut(network, random_plan(network.space, 0.5, 0), form="graph")
    save(pruned, tmp_path)
    save_file({"x": tokens, "y": pruned.model.eval()(input_ids=tokens).logits.detach()}, tmp_path / "io.safetensors")
    code = (
        "import torch, metaprune as mp\nfrom safetensors.torch import load_file\n"
        f"torch.set_num_threads(1)\nio = load_file({str(tmp_path / 'io.safetensors')!r})\n"
        f"model = mp.load({str(tmp_path)!r})\nassert torch.equal(model(input_ids=io['x']).logits, io['y'])"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", TOYS)
def test_every_toy_survives_in_graph_form(tmp_path, name):
    t = toy(name)
    network = trace(t.model, t.args, t.kwargs)
    pruned = cut(network, random_plan(network.space, 0.5, 0), form="graph")
    save(pruned, tmp_path)
    again = load(tmp_path)
    flat = torch.utils._pytree.tree_leaves
    expected, actual = pruned.model.eval()(*t.args, **t.kwargs), again(*t.args, **t.kwargs)
    assert type(expected) is type(actual)
    for a, b in zip(flat(expected), flat(actual), strict=True):  # sums of floats depend on where in memory they lie
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6) if isinstance(a, torch.Tensor) else a == b
    saved, loaded = pruned.model.state_dict(), again.state_dict()
    assert loaded.keys() == saved.keys() - {n for n in saved if n.startswith("never.")}  # what no operator reads
    assert all(torch.equal(t, saved[n]) for n, t in loaded.items())


def test_a_loaded_network_trains_and_is_cut_again(tmp_path):
    save(pruned_cnn(), tmp_path, spec=SPEC, options=OPTIONS)
    for form in ("auto", "graph"):
        model = load(tmp_path, form=form).train()
        before = {n: b.clone() for n, b in model.named_buffers()}
        model(torch.randn(8, 1, 28, 28)).sum().backward()
        assert all(p.grad is not None for p in model.parameters())
        assert any(not torch.equal(before[n], b) for n, b in model.named_buffers())
        network = trace(model, torch.zeros(2, 1, 28, 28))
        cut(network, random_plan(network.space, 0.5, 1))


def test_your_own_class_needs_its_factory_or_the_graph(tmp_path):
    pruned = pruned_cnn("module")
    save(pruned, tmp_path)
    with pytest.raises(NotAvailableError, match="factory"):
        mp.load(tmp_path)
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(mp.load(tmp_path, factory=lambda: create(SPEC, **OPTIONS))(x), pruned.model(x))
    assert torch.allclose(mp.load(tmp_path, form="graph")(x), pruned.model(x), rtol=1e-5)
    with pytest.raises(WeightsError, match="other tensors"):
        mp.load(tmp_path, factory=lambda: torch.nn.Linear(1, 1))


def test_a_spec_that_would_run_code_is_not_followed(tmp_path):
    save(pruned_cnn("module"), tmp_path, spec="python:os:getcwd")
    with pytest.raises(NotAvailableError, match="factory"):
        mp.load(tmp_path)


def test_graph_files_cannot_call_anything_else(tmp_path):
    save(pruned_cnn("graph"), tmp_path)
    path = tmp_path / "network.json"
    for old, new in (("aten::conv2d.default", "os::system"), ("aten::relu_.default", "builtins.eval")):
        data = path.read_text()
        if old in data:
            path.write_text(data.replace(old, new))
            with pytest.raises(DataError, match="neither an aten operator"):
                mp.load(tmp_path)
            path.write_text(data)


def test_no_pickle_on_disk(tmp_path):
    save(pruned_cnn(), tmp_path, spec=SPEC, options=OPTIONS)
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".safetensors"}
    for path in tmp_path.glob("*.json"):
        json.loads(path.read_text())
    assert load_file(tmp_path / "model.safetensors")


def test_misuse_is_named(tmp_path):
    with pytest.raises(DataMissingError, match=r"network\.json"):
        mp.load(tmp_path / "nowhere")
    save(pruned_cnn("graph"), tmp_path)
    with pytest.raises(NotAvailableError, match="graph form"):
        mp.load(tmp_path, form="module")
    (tmp_path / "network.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        mp.load(tmp_path)
    (tmp_path / "network.json").write_text('{"format": 99}')
    with pytest.raises(DataError, match="format"):
        mp.load(tmp_path)
    (tmp_path / "network.json").write_text('{"format": 1}')
    with pytest.raises(DataError, match="lacks aliases"):
        mp.load(tmp_path)
    with pytest.raises(ConfigError, match=r"form=.* does not fit: give 'auto'"):
        save(pruned_cnn("graph"), tmp_path)
        mp.load(tmp_path, form="grph")
    for damage in (lambda p: p.write_bytes(p.read_bytes()[:100]), lambda p: p.unlink()):
        damage(tmp_path / "model.safetensors")
        with pytest.raises(DataError, match="missing or damaged"):
            mp.load(tmp_path)


def test_example_inputs_have_the_traced_shapes(tmp_path):
    save(pruned_cnn(), tmp_path, spec=SPEC, options=OPTIONS)
    args, kwargs = example_inputs(tmp_path)
    assert args[0].shape == (2, 1, 28, 28)
    assert kwargs == {}
