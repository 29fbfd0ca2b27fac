"""A model -> a file that runs without this package (`torch.export` archive or ONNX), checked by running that file.

Nothing is written to the asked path before the exported file gave the model's own outputs: it is made in a temporary
folder beside the path and moved when it passed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.utils import _pytree as pytree

from metaprune.core.batches import batch_size, copied, is_batched, with_batch
from metaprune.core.errors import ConfigError, NotAvailableError, UntraceableError, VerificationError, closest
from metaprune.core.files import draft_folder
from metaprune.core.imports import import_optional
from metaprune.graph.capture import untouched
from metaprune.surgery.verify import relative_error

Format = Literal["pt2", "onnx"]
FORMATS = ("pt2", "onnx")
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
PROTOBUF_LIMIT_BYTES = 2_000_000_000
"""An ONNX file is one protobuf message, and those end at 2 GiB; larger weights go to `NAME.onnx.data` beside it."""

Runner = Callable[[tuple, dict[str, Any]], Any]


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    error: largest difference from the model's outputs over all checked batch sizes, relative to each output's largest
        entry.
    bytes: size on disk, external weights included.
    dynamic_batch: any batch size runs; False where the model itself fixes it to that of the example.
    run: (args, kwargs) -> outputs of the file, in the runtime that it was checked with, with the threads of torch.
    """

    path: Path
    format: str
    error: float
    bytes: int
    dynamic_batch: bool
    run: Runner = field(repr=False, compare=False)


def export_model(
    model: nn.Module,
    args: tuple,
    kwargs: Mapping[str, Any] | None,
    path: str | Path,
    *,
    format: Format,
    tolerance: float = 1e-4,
) -> ExportReport:
    """Export `model` in eval mode and check the file by running it on the example and on another batch size.

    The model is left as it was: mode, weights, device. The examples themselves are not stored in the file.

    Args:
        args, kwargs: example inputs; dimension 0 of the first tensor is the batch, and so is that of every tensor of
            the same size there.
        format: `pt2` (torch.export archive) or `onnx` (needs the extra `onnx`; checked with ONNX Runtime on the CPU).
        tolerance: largest allowed difference, relative to the largest entry of each output.

    Raises:
        ConfigError: unknown format.
        MissingDependencyError: a package of the extra `onnx` is not installed.
        UntraceableError: torch.export cannot capture the model.
        NotAvailableError: the format lacks an operator or data type of the model.
        VerificationError: the exported file does not run or gives other outputs; nothing was written.
    """
    if format not in FORMATS:
        raise ConfigError(f"no export format {format!r}.{closest(str(format), FORMATS)} Known: {', '.join(FORMATS)}")
    if format == "onnx":
        for package in ONNX_PACKAGES:
            import_optional(package, "onnx")
    path, kwargs = Path(path), dict(kwargs or {})
    with draft_folder(path) as folder:
        # the final name, as an ONNX file names its external data after itself
        draft = folder / path.name
        with untouched(model), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program, dynamic = _capture(model, args, kwargs)
            run = _write_pt2(program, draft) if format == "pt2" else _write_onnx(program, draft)
            error = _check(model, run, args, kwargs, dynamic, tolerance, format)
        size = sum(file.stat().st_size for file in folder.iterdir())
        # external data first: a model file must never point at weights that are not there yet
        for file in sorted(folder.iterdir(), key=lambda file: file == draft):
            file.replace(path.parent / file.name)
    return ExportReport(path, format, error, size, dynamic, run)


def _capture(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[Any, bool]:
    """(exported program, whether its batch is dynamic).

    Raises UntraceableError.
    """
    batch = batch_size(args, kwargs)
    # torch.export takes a size of one for a constant
    example = with_batch(args, kwargs, 2) if batch == 1 else (args, kwargs)
    shapes = torch.export.ShapesCollection()
    seen: set[int] = set()
    for leaf in pytree.tree_leaves(example) if batch and _runs(model, *with_batch(args, kwargs, batch + 1)) else []:
        if is_batched(leaf, max(batch, 2)) and id(leaf) not in seen:
            seen.add(id(leaf))
            shapes[leaf] = {0: torch.export.Dim.AUTO}
    error: Exception | None = None
    for inputs, dynamic in [(example, shapes), ((args, kwargs), None)] if seen else [((args, kwargs), None)]:
        try:
            program = torch.export.export(model, *inputs, dynamic_shapes=cast("Any", dynamic), strict=False)
        except Exception as caught:  # torch.export raises many unrelated classes
            error = error or caught
            continue
        is_dynamic = _has_dynamic_batch(program)
        if is_dynamic or dynamic is None or batch > 1:
            # the archive would hold the example inputs: a user's data does not belong in a file that is handed on
            program._example_inputs = None
            return program, is_dynamic
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    raise UntraceableError(
        f"torch.export could not capture {type(model).__name__}: {first[:300]}\n"
        "`metaprune.network.trace(model, inputs)` names the module and the line that stop it."
    ) from error


def _runs(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether the model itself takes these inputs: one that fixes its batch can still be traced with a symbol."""
    try:
        model(*copied(args), **copied(kwargs))
    except Exception:  # a forward may raise anything
        return False
    return True


def _has_dynamic_batch(program: Any) -> bool:
    names = set(program.graph_signature.user_inputs)
    values = [n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder" and n.name in names]
    return any(isinstance(v, torch.Tensor) and v.dim() and isinstance(v.shape[0], torch.SymInt) for v in values)


def _write_pt2(program: Any, path: Path) -> Runner:
    torch.export.save(program, path)
    try:
        module = torch.export.load(path).module()
    except Exception as failure:
        raise VerificationError(
            f"the exported archive does not load: {_first_line(failure)}. Nothing was written"
        ) from failure
    return lambda args, kwargs: module(*args, **kwargs)


def _write_onnx(program: Any, path: Path) -> Runner:
    """Write and load the ONNX file. Raises NotAvailableError, VerificationError."""
    onnx, runtime = import_optional("onnx", "onnx"), import_optional("onnxruntime", "onnx")
    tensors = [*program.state_dict.values(), *(c for c in program.constants.values() if isinstance(c, torch.Tensor))]
    if any(t.dtype == torch.bfloat16 for t in tensors):
        raise NotAvailableError("ONNX Runtime on the CPU cannot check bfloat16 models: export model.float(), or as pt2")
    external = sum(t.numel() * t.element_size() for t in tensors) > PROTOBUF_LIMIT_BYTES
    try:
        made = torch.onnx.export(program, dynamo=True, verbose=False)
    except Exception as failure:
        raise NotAvailableError(
            f"torch.onnx cannot translate this model: {_first_line(failure)}. The pt2 format is possible: format='pt2'"
        ) from failure
    cast("Any", made).save(path, external_data=external)
    try:
        onnx.checker.check_model(str(path))
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as failure:
        raise VerificationError(
            f"the ONNX file does not load: {_first_line(failure)}. Nothing was written"
        ) from failure
    names, wanted = program.graph_signature.user_inputs, {i.name for i in session.get_inputs()}

    def run(args: tuple, kwargs: dict[str, Any]) -> list[torch.Tensor]:
        leaves = zip(names, pytree.tree_leaves((args, kwargs)), strict=True)
        feed = {name: x.detach().cpu().numpy() for name, x in leaves if name in wanted}
        return [torch.from_numpy(array) for array in session.run(None, feed)]

    return run


def _check(
    model: nn.Module, run: Runner, args: tuple, kwargs: dict[str, Any], dynamic: bool, tolerance: float, format: str
) -> float:
    """Largest relative error over the checked batch sizes. Raises VerificationError above `tolerance`."""
    batch, worst = batch_size(args, kwargs), 0.0
    sizes = [batch, *([batch + 1, batch + 3] if dynamic else [])]
    for size in sizes:
        inputs = with_batch(args, kwargs, size)
        # models that write into their inputs must not feed the second run with what the first one left
        expected = _tensors(model(*copied(inputs[0]), **copied(inputs[1])))
        try:
            actual = _tensors(run(*copied(inputs)))
        except Exception as failure:
            raise VerificationError(
                f"the {format} export does not run at batch size {size}: {_first_line(failure)}. Nothing was written"
            ) from failure
        error = relative_error(actual, expected)
        if not error <= tolerance:
            raise VerificationError(
                f"the {format} export differs from the model by {error:.2e} at batch size {size} (relative; allowed "
                f"{tolerance:g}). Nothing was written"
            )
        worst = max(worst, error)
    return worst


def _tensors(value: Any) -> list[torch.Tensor]:
    return [x.detach().cpu() for x in pytree.tree_leaves(value) if isinstance(x, torch.Tensor)]


def _first_line(failure: Exception) -> str:
    line = next((line.strip() for line in str(failure).splitlines() if line.strip()), "")
    return f"{type(failure).__name__}: {line[:300]}"
