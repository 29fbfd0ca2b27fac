"""`trace`: from a model to its `Network`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.utils import _pytree as pytree

from metaprune.core.arguments import check_arguments
from metaprune.core.collection import without_collection
from metaprune.core.errors import ConfigError, FixedBatchWarning, InputsError, MetapruneError, UncoveredOpWarning
from metaprune.elastic.folding import find_branches
from metaprune.graph.capture import capture, capture_training
from metaprune.graph.labelling import label_graph
from metaprune.graph.ops import fuse_channel_shuffles
from metaprune.graph.roles import roles_of_atoms
from metaprune.graph.space import build_space
from metaprune.graph.transformers_models import require_unquantised, without_cache
from metaprune.graph.unpack import unpack_projections
from metaprune.network import Network


def trace(
    model: nn.Module,
    example_inputs: Any,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    free_outputs: bool | Sequence[str] = False,
    batch_dim: int = 0,
) -> Network:
    """Capture `model` and label it. The model stays as it is: tensors, attributes, modes, grads, hooks, random state.

    The network reads the model's tensors: move the model to its device first, and trace it again after moving it.

    Args:
        model: on the device where it will run.
        example_inputs: a tensor or a tuple of positional inputs.
        example_kwargs: keyword inputs. A transformers model is traced without a cache, whatever `use_cache` says.
        free_outputs: outputs that may change their width: all (features of a backbone), or those that glob patterns
            name ("encoder_last_hidden_state" of a dict or dataclass, "0.1" of nested tuples). By default none may.
        batch_dim: which dimension of the first tensor, and of all as long there, counts samples; 1 for sequence-first
            layers. Where that is no batch, or fixed by the model, a warning says so, and costs are those of one call.

    Raises:
        PlanError: `free_outputs` names no output.
        NotAvailableError: the model is quantised.
        UntraceableError: the model can neither be recorded nor exported; names module, line and what to do.
    """
    check_arguments(trace, locals())
    if not isinstance(model, nn.Module):
        raise MetapruneError(f"trace takes a torch.nn.Module, not {type(model).__name__}")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise MetapruneError(f"trace the module inside {type(model).__name__}: pass model.module")
    if batch_dim < 0:
        raise ConfigError(f"batch_dim={batch_dim} does not fit: give a dimension from 0 on")
    require_unquantised(model)
    args = example_inputs if isinstance(example_inputs, tuple) else () if example_inputs is None else (example_inputs,)
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    try:
        pytree.tree_leaves((args, example_kwargs))
    except RecursionError as error:
        raise InputsError("the example inputs hold themselves, or are nested too deeply: give tensors") from error
    with without_collection():
        captured = capture(model, tuple(args), without_cache(model, example_kwargs or {}), batch_dim)
        training = capture_training(model, captured, batch_dim)
        for graph in (captured, training) if training is not None else (captured,):
            fuse_channel_shuffles(graph.graph)
            unpack_projections(graph)
        labelled = label_graph(captured, free_outputs, training)
        space = build_space(captured, labelled, roles_of_atoms(captured, labelled))
        space = replace(space, branches=find_branches(captured, labelled, space), aliases=captured.aliases)
        network = Network(model, captured, labelled, space)
    if captured.batch_fixed:
        warnings.warn(
            f"{captured.batch_fixed}: costs are of one call on the example inputs. If samples lie along another "
            "dimension, trace with batch_dim=",
            FixedBatchWarning,
            stacklevel=2,
        )
    if labelled.uncovered:
        macs = {op: sum(u.macs for u in labelled.uncovered if u.op == op) for op in {u.op for u in labelled.uncovered}}
        ops = [f"{op} ({macs[op]:,} MACs, constant)" if macs[op] else op for op in sorted(macs)]
        warnings.warn(
            f"operators without a rule lock what enters them: {', '.join(ops)}", UncoveredOpWarning, stacklevel=2
        )
    return network
