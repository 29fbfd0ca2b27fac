"""Exports: the file alone gives the model's outputs at other batch sizes, and a wrong one is never handed over."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from metaprune.core.errors import ConfigError, MissingDependencyError, UntraceableError, VerificationError
from metaprune.export import exporters
from metaprune.export.exporters import export_model
from metaprune.export.timed import time_exports
from metaprune.models import create
from metaprune.surgery import cut
from metaprune.tracing import trace
from metaprune.values import Plan

needs_onnx = pytest.mark.skipif(
    not all(find_spec(p) for p in exporters.ONNX_PACKAGES), reason="the extra `onnx` is not installed"
)
FORMATS = ["pt2", pytest.param("onnx", marks=needs_onnx)]
SPECS = ["zoo:resnet8", "zoo:vit_micro"]


class TwoInputs(nn.Module):
    """A keyword input, a plain number, nested outputs, and a tensor without a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 3)

    def forward(self, x, table, scale=1.0, shift=None):
        y = self.a(x) * scale + table.sum()
        return {"y": y, "z": [y if shift is None else y + shift]}


class FixedBatch(nn.Module):
    def forward(self, x):
        return x.reshape(2, 12).sum(dim=1)


class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def random_model(spec: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = create(spec)
    for buffer_name, buffer in model.named_buffers():
        if buffer_name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
    return model, torch.randn(2, *model.input_shape)  # type: ignore[misc]


def outputs_of(path: Path, format: str, x: torch.Tensor) -> torch.Tensor:
    """Run the file as someone without metaprune would."""
    if format == "pt2":
        return torch.export.load(path).module()(x)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("spec", SPECS)
def test_the_file_equals_the_model(spec: str, format: Any, tmp_path: Path):
    model, x = random_model(spec)
    model.train()
    model.get_submodule(next(n for n, _ in model.named_children())).eval()
    modes = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    random_state = torch.get_rng_state()

    path = tmp_path / "deep" / f"model.{format}"
    report = export_model(model, (x[:1],), None, path, format=format)  # a batch of one must not be taken for constant

    assert report.path == path and report.format == format and report.dynamic_batch
    assert 0 <= report.error < 1e-4
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert report.bytes == path.stat().st_size
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    model.eval()
    x = torch.randn(5, *x.shape[1:])
    with torch.no_grad():
        torch.testing.assert_close(outputs_of(path, format, x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("form", ["module", "graph"])
@pytest.mark.parametrize("spec", SPECS)
def test_a_cut_network_in_both_forms(spec: str, form: Any, format: Any, tmp_path: Path):
    model, x = random_model(spec)
    network = trace(model, x)
    keep = [np.arange(g.width) % 2 == 0 if g.width > 1 else np.ones(1, bool) for g in network.space]
    small = cut(network, Plan.of(network.space, keep), form=form).model
    report = export_model(small, (x,), {}, tmp_path / f"cut.{format}", format=format)
    assert report.dynamic_batch
    small.eval()
    with torch.no_grad():
        torch.testing.assert_close(outputs_of(report.path, format, x[:1]), small(x[:1]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("format", FORMATS)
def test_keywords_numbers_and_nested_outputs(format: Any, tmp_path: Path):
    model = TwoInputs()
    # keywords not in the order of the signature
    kwargs = {"shift": torch.randn(3, 3), "scale": 2.0}
    report = export_model(model, (torch.randn(3, 4), torch.randn(5)), kwargs, tmp_path / "m", format=format)
    assert report.dynamic_batch and report.error < 1e-5


@pytest.mark.parametrize("format", FORMATS)
def test_a_model_that_fixes_its_batch(format: Any, tmp_path: Path):
    report = export_model(FixedBatch(), (torch.randn(2, 3, 4),), {}, tmp_path / "m", format=format)
    assert not report.dynamic_batch


@pytest.mark.parametrize("format", FORMATS)
def test_a_wrong_file_is_not_handed_over(format: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "model.bin"
    path.write_text("what was there before")
    honest = getattr(exporters, f"_write_{format}")

    def wrong(program, draft):
        run = honest(program, draft)
        return lambda args, kwargs: [1.001 * t for t in exporters._tensors(run(args, kwargs))]

    monkeypatch.setattr(exporters, f"_write_{format}", wrong)
    with pytest.raises(VerificationError, match=r"differs from the model by 1\.00e-03 at batch size 2"):
        export_model(TwoInputs(), (torch.randn(2, 4), torch.randn(5)), {}, path, format=format)
    assert path.read_text() == "what was there before"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("format", FORMATS)
def test_the_example_is_not_stored(format: Any, tmp_path: Path):
    x = torch.full((2, 4), 1234.5)
    path = export_model(TwoInputs(), (x, torch.randn(5)), {}, tmp_path / "m", format=format).path
    assert x[0].numpy().tobytes() not in path.read_bytes()


@needs_onnx
def test_large_onnx_weights_lie_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(exporters, "PROTOBUF_LIMIT_BYTES", 100)
    model = nn.Linear(64, 64)
    report = export_model(model, (torch.randn(2, 64),), {}, tmp_path / "big.onnx", format="onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big.onnx", "big.onnx.data"]
    assert report.bytes == sum(p.stat().st_size for p in tmp_path.iterdir())
    x = torch.randn(3, 64)
    torch.testing.assert_close(outputs_of(report.path, "onnx", x), model(x).detach(), rtol=1e-4, atol=1e-5)


def test_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    x = torch.randn(2, 4)
    with pytest.raises(ConfigError, match="Did you mean 'onnx'"):
        export_model(nn.Linear(4, 4), (x,), {}, tmp_path / "m", format="onxx")  # type: ignore[arg-type]
    with pytest.raises(UntraceableError, match="could not capture Branch"):
        export_model(Branch(), (x,), {}, tmp_path / "m", format="pt2")
    monkeypatch.setattr("metaprune.core.imports.importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"metaprune\[onnx\]"):
        export_model(nn.Linear(4, 4), (x,), {}, tmp_path / "m", format="onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", FORMATS)
def test_files_are_timed_in_turns_at_another_batch(format: Any, tmp_path: Path):
    x = torch.randn(2, 8)
    dense, small = (nn.Sequential(nn.Linear(8, n), nn.Linear(n, 3)) for n in (64, 8))
    made = [export_model(m, (x,), {}, tmp_path / f"{i}", format=format) for i, m in enumerate((dense, small))]
    seen: list[tuple[int, int]] = []
    told = [
        replace(e, run=lambda a, k, i=i, e=e: (seen.append((i, len(a[0]))), e.run(a, k))) for i, e in enumerate(made)
    ]
    times = time_exports(told, (x,), batch=5, repeats=4)
    assert seen == [(0, 5), (1, 5)] * 7  # three runs each do not count
    assert all(t["median"] > 0 and (t["batch"], t["repeats"]) == (5, 4) for t in times)
    assert time_exports(made, (x,), repeats=1)[0]["batch"] == 2
    with pytest.raises(ConfigError, match="batch=0"):
        time_exports(made, (x,), batch=0)
    with pytest.raises(ConfigError, match="batch size of the example only, 2"):
        time_exports([replace(made[0], dynamic_batch=False)], (x,), batch=3)
