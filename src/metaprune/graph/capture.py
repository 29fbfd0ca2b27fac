"""model + example inputs -> `Captured`, checked against the model.

The recorder runs the model itself and is tried first. `torch.export` (non-strict, not decomposed, dynamic batch) is the
fall-back. Both keep high-level operators: linear, conv2d, layer_norm, scaled_dot_product_attention, batch_norm.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from metaprune.core.batches import copied, with_batch
from metaprune.core.errors import UntraceableError
from metaprune.core.side_effects import ModelState, side_effects_undone
from metaprune.graph.batch_dimension import varied
from metaprune.graph.captured import Captured
from metaprune.graph.exported import captured_from
from metaprune.graph.exporting import Exported, export_once, export_program
from metaprune.graph.interpret import agrees
from metaprune.graph.recorded import record, record_training
from metaprune.graph.recorder import CannotRecordError
from metaprune.graph.transformers_models import as_traced

_OTHER_BATCH = 5


@contextmanager
def untouched(model: nn.Module) -> Iterator[ModelState]:
    """Put the model in eval mode inside the block; what happens to it there is undone (see `side_effects_undone`)."""
    with side_effects_undone(model) as before:
        for module in model.modules():
            module.training = False
        yield before


def capture(model: nn.Module, args: tuple, kwargs: dict[str, Any], batch_dim: int = 0) -> Captured:
    """Capture `model` in eval mode on example inputs: by recording it or, where that is refused, by `torch.export`.

    Raises:
        UntraceableError: neither can capture the model; names the module, the line and the operator.
    """
    with as_traced(model), untouched(model) as state:
        try:
            return record(model, state, args, kwargs, batch_dim)
        except CannotRecordError as error:
            reason = str(error)
        captured = captured_from(export_program(model, args, kwargs, batch_dim), batch_dim)
        captured.not_recorded = reason
        _check(model, captured)
    return captured


def _check(model: nn.Module, captured: Captured) -> None:
    """Compare the graph with the model on other values, on another batch too where it may vary; not on `meta`.

    Raises:
        UntraceableError: they differ on the batch of the example.
    """
    if any(tensor.is_meta for tensor in captured.tensors.values()):
        return
    other = min(_OTHER_BATCH, captured.batch_range[1] or _OTHER_BATCH)
    if captured.batch is not None and not _computes_the_same(model, captured, other):
        captured.varies, captured.batch = False, None
        captured.batch_fixed = "the model computes something else on batches of other sizes"
    draws = any(torch.Tag.nondeterministic_seeded in getattr(n.target, "tags", ()) for n in captured.graph.nodes)
    if captured.batch is None and not draws and not _computes_the_same(model, captured):
        raise UntraceableError(
            f"what torch.export captured of {type(model).__name__} computes something else than the model on inputs of "
            "other values: forward takes another way there. What to do: a branch on values becomes torch.where; "
            "values that leave torch (numpy, item()) and Python's own random numbers move out of forward"
        )


def _computes_the_same(model: nn.Module, captured: Captured, batch: int = 0) -> bool:
    dim = captured.batch_dim
    inputs = with_batch(*captured.example, batch, dim) if batch else captured.example
    args, kwargs = varied(*inputs, dim)
    try:
        with torch.no_grad(), side_effects_undone(model):
            torch.default_generator.manual_seed(0)
            copies = copied((args, kwargs))
            returned = pytree.tree_leaves(model(*copies[0], **copies[1]), is_leaf=lambda x: x is None)
        return agrees(captured, pytree.tree_leaves((args, kwargs)), returned)
    except Exception:  # the model may raise anything on inputs that nobody gave
        return not batch


def capture_training(model: nn.Module, captured: Captured, batch_dim: int = 0) -> Captured | None:
    """Capture `model` in train mode where `captured` leaves parameters unused: auxiliary heads, say, that only train.

    None: all are used, or train mode cannot be captured.
    """
    unused = {
        captured.sources[n.name]
        for n in captured.graph.nodes
        if n.op == "placeholder" and n.name in captured.sources and not n.users
    }
    if not any(isinstance(captured.tensors[name], nn.Parameter) for name in unused):
        return None
    with as_traced(model), untouched(model) as state:
        with contextlib.suppress(CannotRecordError):
            return record_training(model, state, *captured.example, batch_dim)
        for module in model.modules():
            module.training = True
        try:
            program = export_once(model, *captured.example, batch_dim)
        except Exception:  # torch.export raises many unrelated classes
            return None
    return captured_from(Exported(program, captured.example), batch_dim)
