"""`torch.export` on the inputs that the user gave, with a batch that may vary, and what to say where it fails."""

from __future__ import annotations

import contextlib
import inspect
import io
import linecache
import logging
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from metaprune.core.batches import batch_size, copied, is_batched, with_batch
from metaprune.core.errors import UntraceableError, first_line
from metaprune.core.side_effects import side_effects_undone
from metaprune.graph.batch_dimension import NO_BATCH, samples_are_independent

_FAR = 2**31  # a bound beyond it is none of the model's own


@dataclass(frozen=True)
class Exported:
    """A program of `torch.export` and the inputs that it is analysed on.

    varies: whether the program takes batches of other sizes.
    fixed: why the batch is fixed, or no batch; empty where it varies, or where no tensor goes in.
    """

    program: Any
    example: tuple[tuple, dict[str, Any]]
    varies: bool = False
    fixed: str = ""


def export_program(model: nn.Module, args: tuple, kwargs: dict[str, Any], batch_dim: int) -> Exported:
    """Export on the user's inputs; a batch of one, which would be taken for a constant, is tried as two.

    Where samples are known not to depend on one another, two of them stand for all.

    Raises:
        UntraceableError: the model cannot be exported; names the module, the line and the operator.
    """
    batch = batch_size(args, kwargs, batch_dim)
    if batch == 1:
        doubled = with_batch(args, kwargs, 2, batch_dim)
        with contextlib.suppress(Exception):  # the inputs as given are next
            program = export_once(model, *doubled, batch_dim)
            if varies(program, batch_dim) and samples_are_independent(model, *doubled, batch_dim) is not False:
                return Exported(program, doubled, varies=True)
    try:
        program = export_once(model, args, kwargs, batch_dim)
    except Exception as error:  # torch.export raises many unrelated classes
        raise UntraceableError(_eager_failure(model, args, kwargs) or _explanation(model, error)) from error
    if failure := _eager_failure(model, args, kwargs):  # export is not as strict about types as the operators are
        raise UntraceableError(failure)
    if batch == 0:
        return Exported(program, (args, kwargs))
    if not varies(program, batch_dim):
        fixed = f"dimension {batch_dim} of the inputs is fixed at {batch} by the model"
        return Exported(program, (args, kwargs), fixed=fixed)
    independent, judged = None, (args, kwargs)
    for judged in (with_batch(args, kwargs, 2, batch_dim), (args, kwargs)):
        with contextlib.suppress(Exception):  # the model may raise anything on inputs that nobody gave
            independent = samples_are_independent(model, *judged, batch_dim)
            break
    if independent is False:
        fixed = NO_BATCH.format(dim=batch_dim)
        return Exported(program, (args, kwargs), varies=True, fixed=fixed)
    return Exported(program, judged if independent else (args, kwargs), varies=True)


def varies(program: Any, dim: int) -> bool:
    """Tell whether dimension `dim` of an input still varies after an export."""
    inputs = set(program.graph_signature.user_inputs)
    nodes = (n for n in program.graph_module.graph.nodes if n.op == "placeholder" and n.name in inputs)
    sizes: list[Any] = [
        v.shape[dim] for n in nodes if isinstance(v := n.meta.get("val"), torch.Tensor) and v.dim() > dim
    ]
    return any(isinstance(s, torch.SymInt) and s.node.expr.free_symbols for s in sizes)


def batch_range(program: Any) -> tuple[int, int | None]:
    """Read between which sizes Python's branches went the way that was captured."""
    bounds = program.range_constraints.values()
    low = max((int(b.lower) for b in bounds if b.lower > 2), default=1)  # 2 is where every export begins
    return low, min((int(b.upper) for b in bounds if b.upper < _FAR), default=None)


def export_once(model: nn.Module, args: tuple, kwargs: dict[str, Any], batch_dim: int) -> Any:
    """Run `torch.export` with the batch left open, in the modes that the modules are in.

    Raises whatever torch.export raises.
    """
    shapes = torch.export.ShapesCollection()
    batch = batch_size(args, kwargs, batch_dim)
    seen: set[int] = set()
    for leaf in pytree.tree_leaves((args, kwargs)):
        if is_batched(leaf, batch, batch_dim) and id(leaf) not in seen:
            seen.add(id(leaf))
            shapes[leaf] = {batch_dim: torch.export.Dim.AUTO}
    # torch.export (2.13) cannot name the shapes of `**kwargs`: such a forward keeps the batch size of the example
    named = set(kwargs) <= set(inspect.signature(model.forward).parameters)
    dynamic: Any = shapes if seen and batch > 1 and named else None
    with warnings.catch_warnings(), _quiet(), side_effects_undone(model):  # fake tensors must not meet the next run
        warnings.simplefilter("ignore")
        _unregister_empty_buffers(model)
        return torch.export.export(model, args, kwargs or None, dynamic_shapes=dynamic, strict=False)


def _unregister_empty_buffers(model: nn.Module) -> None:
    """Make attributes of buffers that are None: torch.export (2.13) takes filling one for writing into an input."""
    for module in model.modules():
        for name in [n for n, buffer in module._buffers.items() if buffer is None]:
            del module._buffers[name]
            vars(module)[name] = None


@contextlib.contextmanager
def _quiet():
    """Keep a failing export from printing its whole graph: what matters is in the error."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _eager_failure(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> str | None:
    """What to say if the model does not even run on the inputs, which is then no matter of export."""
    try:
        with torch.no_grad(), side_effects_undone(model):
            args, kwargs = copied((args, kwargs))
            model(*args, **kwargs)
    except Exception as error:
        return (
            f"{type(model).__name__} does not run on the example inputs: {type(error).__name__}: {first_line(error)}. "
            "What to do: give inputs of the shape, type and device that its forward takes."
        )
    return None


def _explanation(model: nn.Module, error: Exception) -> str:
    """Name the innermost user module and source line that export stopped at, and what to do."""
    paths = {id(m): name or "(root)" for name, m in model.named_modules()}
    scripted = next((paths[id(m)] for m in model.modules() if isinstance(m, torch.jit.ScriptModule)), None)
    if scripted is not None:
        return (
            f"module {scripted} is compiled by torch.jit, which hides from a trace what it computes. "
            "What to do: trace the model with the Python module that was given to torch.jit.script in its place."
        )
    where, line, packed = "", "", False
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        owner = frame.f_locals.get("self")
        packed |= isinstance(owner, nn.RNNBase) and frame.f_locals.get("batch_sizes") is not None
        packed |= frame.f_code.co_name == "pack_padded_sequence"
        if (
            isinstance(owner, nn.Module)
            and id(owner) in paths
            and "torch/nn/modules/module" not in frame.f_code.co_filename
        ):
            where = f"{paths[id(owner)]} ({type(owner).__name__})"
            # a class without a file (a notebook, exec) has a line number and no text
            line = linecache.getline(frame.f_code.co_filename, trace.tb_lineno).strip() or f"line {trace.tb_lineno}"
        trace = trace.tb_next
    reason = f"{type(error).__name__}: {first_line(error)}"
    if not where:  # not stopped in a forward: a kind of module or of output that export does not take
        return (
            f"torch.export does not take {type(model).__name__}: {reason}. "
            "What to do: pass an initialised nn.Module that returns tensors, tuples, lists, dicts or NamedTuples. "
            "A dataclass works once it is registered: torch.export.register_dataclass(TheClass). A cache among the "
            "outputs is left out by an argument of the model's own, as use_cache=False."
        )
    if packed:
        return (
            f"module {where} reads a packed sequence, whose sizes are values of an input: no trace takes those. "
            "What to do: trace the model on padded sequences [batch, length, features], without "
            "pack_padded_sequence: recurrent layers take them as they are, and the weights are the same."
        )
    return (
        f"torch.export could not capture module {where} at `{line}`: {reason}. "
        "What to do: a branch on tensor values becomes torch.where or torch.cond; .item() and numpy calls move out of "
        "forward; or trace the part of the model that is free of them."
    )
