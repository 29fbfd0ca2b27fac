"""`Network`: a traced model. Its channel groups, its cost at any widths, and how it runs at any widths."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from metaprune.core.errors import MetapruneError, PlanError, UncoveredOpWarning
from metaprune.cost.analytic import CostModel
from metaprune.elastic.gated import Gated
from metaprune.elastic.masked import run_masked
from metaprune.elastic.program import Program
from metaprune.elastic.weights import SlicedTensors
from metaprune.graph.call import Survivors
from metaprune.graph.capture import Captured, capture, module_of, op_name
from metaprune.graph.explain import explain_lines
from metaprune.graph.labelling import Labelled, Uncovered, label_graph
from metaprune.graph.ops import fuse_channel_shuffles
from metaprune.graph.roles import roles_of_atoms
from metaprune.graph.space import build_space
from metaprune.graph.unpack import unpack_projections
from metaprune.values import Cost, Plan, Space

# in ATen's names; a trailing underscore works in place
DROPOUTS = frozenset(
    f"{kind}dropout{tail}" for kind in ("", "feature_", "alpha_", "feature_alpha_") for tail in ("", "_")
)


class Network:
    """A captured graph, the labels of every tensor dimension, and the `Space` of channel groups.

    Holds the model itself (never changed) and reads its tensors; make one with `trace`.
    """

    def __init__(self, model: nn.Module, captured: Captured, labelled: Labelled, space: Space):
        self.model = model
        self.captured = captured
        self.labelled = labelled
        self.space = space
        self._costs: dict[int, CostModel] = {}
        self.switchable = self._find_switchable()
        self.program = Program(captured, labelled.facts, self.switchable)

    @property
    def uncovered(self) -> list[Uncovered]:
        """Operators without a rule; what entered them is locked."""
        return self.labelled.uncovered

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The model's parameters and buffers by canonical name."""
        return self.captured.tensors

    @property
    def notes(self) -> list[str]:
        """Operators whose result depends on how many channels there are (statistics over channels)."""
        return list(dict.fromkeys(n for f in self.labelled.facts.values() for n in f.notes))

    def with_tensors(self, tensors: Mapping[str, torch.Tensor]) -> Network:
        """This network with other weights, for methods that read `tensors`; graph, space and costs are shared."""
        new = copy.copy(self)
        own = {
            n: nn.Parameter(tensors[n].detach(), requires_grad=False) if isinstance(t, nn.Parameter) else tensors[n]
            for n, t in self.tensors.items()
        }
        new.captured = replace(self.captured, tensors=own)
        return new

    def _find_switchable(self) -> frozenset[str]:
        """Nodes that follow the training flag: dropout, and BatchNorm over running statistics that are the model's."""
        names = []
        for node in self.captured.graph.nodes:
            if node.op != "call_function":
                continue
            if op_name(node.target) in DROPOUTS and node.args[2] is False:
                names.append(node.name)
            if op_name(node.target) == "batch_norm" and node.args[5] is False:
                owner = _submodule(self.model, module_of(node))
                if isinstance(owner, nn.modules.batchnorm._BatchNorm):
                    names.append(node.name)
        return frozenset(names)

    @cached_property
    def gated(self) -> Gated:
        """Runs the full network under soft gates; it reads the graph, so other weights share it."""
        return Gated(self.program, self.captured, self.labelled, self.space)

    @cached_property
    def isomorphic_classes(self) -> list[int]:
        """One number per group; equal for groups that live in the same kinds of parameters in the same way.

        After Isomorphic Pruning (Fang et al., ECCV 2024): structures of different topology are not ranked against one
        another. Our signature is the set of (module class, parameter, dimension, rows per channel is one or more).
        """
        kinds = {n: type(m).__name__ for n, m in self.model.named_modules()}
        signatures = []
        for group in self.space:
            rows = []
            for m in group.members:
                path, _, leaf = m.parameter.rpartition(".")
                rows.append((kinds.get(path, ""), leaf, m.dim, m.rows.shape[1] > 1))
            signatures.append(tuple(sorted(set(rows))))
        numbers = {s: i for i, s in enumerate(dict.fromkeys(signatures))}
        return [numbers[s] for s in signatures]

    # ------------------------------------------------------------------------------------------ plans and costs

    def survivors(self, plan: Plan) -> Survivors:
        """Raises PlanError if the plan does not fit."""
        alive = np.ones(len(self.labelled.atoms), dtype=bool)
        for group, mask in zip(self.space, plan.masks(self.space), strict=True):
            alive[group.atoms] = mask
        return Survivors(self.labelled.atoms, alive)

    def cost_model(self, batch: int = 1) -> CostModel:
        if batch not in self._costs:
            self._costs[batch] = CostModel(self.captured, self.labelled, self.space, batch)
        return self._costs[batch]

    def use_latency(self, predict_ms: Callable[[np.ndarray], np.ndarray] | None) -> None:
        """Let `cost` and budgets know milliseconds. predict_ms: widths [n, groups] -> ms [n] of a latency table."""
        self.cost_model().predict_ms = predict_ms

    def masks_at(self, plan: Plan, masks: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Masks of single weights (see `Proposal.masks`), cut to what `plan` keeps.

        Raises:
            PlanError: a mask that is no bool tensor of a parameter's full shape.
        """
        for name, mask in masks.items():
            of = self.tensors.get(name)
            if not isinstance(of, nn.Parameter) or mask.dtype != torch.bool or mask.shape != of.shape:
                raise PlanError(f"masks[{name!r}] must be a bool tensor of the full shape of a parameter")
        return dict(self.sliced(self.survivors(plan), tensors=masks))

    def cost(
        self,
        widths: Plan | Mapping[str, int] | np.ndarray | None = None,
        *,
        batch: int = 1,
        masks: Mapping[str, torch.Tensor] | None = None,
    ) -> Cost:
        """Cost at full width, of a plan, or at given widths.

        Args:
            widths: nothing; a Plan; group name -> width (others full); int [groups]; or int [candidates, groups], which
                gives a Cost of arrays [candidates].
            batch: samples per forward pass (MACs and peak_bytes scale with it).
            masks: of single weights at full size, with a Plan; they change `nonzero` alone.
        """
        model = self.cost_model(batch)
        if isinstance(widths, Plan):
            exact = model.of_survivors(self.survivors(widths))
            masked = sum(int((~m).sum()) for m in self.masks_at(widths, masks or {}).values())
            return replace(exact, latency_ms=model.of_widths(widths.widths(self.space)).latency_ms, masked=masked)
        if widths is None:
            return model.of_widths(self.space.widths)
        if isinstance(widths, Mapping):
            full = self.space.widths.copy()
            for name, width in widths.items():
                full[self.space.index[self.space[name].name]] = width
            widths = full
        array = np.asarray(widths, dtype=np.int64)
        if array.shape[-1:] != self.space.widths.shape or (array < 1).any() or (array > self.space.widths).any():
            raise PlanError(
                f"widths must be within 1..full for each of the {len(self.space)} groups; got shape {array.shape}"
            )
        return model.of_widths(array)

    # ------------------------------------------------------------------------------------------ execution

    def run(
        self,
        *args: Any,
        plan: Plan | None = None,
        tensors: Mapping[str, torch.Tensor] | None = None,
        masked: bool = False,
        training: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Execute the traced graph at the widths of `plan`, with gradients.

        Args:
            plan: what stays; None keeps all.
            tensors: by parameter name; with a plan, already of the plan's shapes (generated, rewritten, sliced once)
                unless `masked`. By default the model's own, sliced on the fly, with gradients into the full parameters.
            masked: run at full size with dropped indices zero where they are consumed (the reference semantics).
            training: BatchNorm uses batch statistics, dropout drops. Running statistics are copies: the model's own
                stay as they are (recalibrate the structure that is chosen).
        """
        alive = None if plan is None else self.survivors(plan)
        if tensors is None:
            own = self.tensors
            if training:
                own = {n: t if isinstance(t, nn.Parameter) else t.clone() for n, t in own.items()}
            tensors = own if masked else self.sliced(alive, tensors=own)
        if masked and alive is not None:
            structure = self.program.structure(key="full", training=training)
            return run_masked(self.program, structure, self.labelled, tensors, alive, args, kwargs)
        key = "full" if plan is None else tuple(sorted(plan.keep.items()))
        structure = self.program.structure(alive, key=key, training=training)
        return self.program.run(structure, tensors, args, kwargs)

    def sliced(
        self,
        alive: Survivors | None,
        dtype: torch.dtype | None = None,
        tensors: Mapping[str, torch.Tensor] | None = None,
    ) -> Mapping[str, torch.Tensor]:
        """Full-size `tensors` (the model's own by default), sliced on access and differentiable."""
        tensors = self.tensors if tensors is None else tensors
        return tensors if alive is None and dtype is None else SlicedTensors(tensors, self.labelled, alive, dtype)

    # ------------------------------------------------------------------------------------------ explanation

    def explain(self) -> str:
        """One line per layer: width of its output, channel group, and whether it can be pruned or why not."""
        return "\n".join(explain_lines(self.model, self.labelled, self.space, self.tensors, self.notes))


def _submodule(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def trace(
    model: nn.Module,
    example_inputs: Any,
    example_kwargs: dict[str, Any] | None = None,
    *,
    free_outputs: bool | Sequence[str] = False,
) -> Network:
    """Capture `model` and label it. The model stays as it is: weights, buffers, modes, grads, hooks, random state.

    The network reads the model's tensors: move the model to its device first, and trace it again after moving it.

    Args:
        example_inputs: a tensor or a tuple of positional inputs; the first dimension of the first tensor is the batch.
        example_kwargs: keyword inputs.
        free_outputs: outputs that may change their width: all (features of a backbone), or those that glob patterns
            name ("encoder_last_hidden_state" of a dict or dataclass, "0.1" of nested tuples). By default none may.

    Raises:
        PlanError: `free_outputs` names no output.
        UntraceableError: `torch.export` cannot capture the model; names module, line and what to do.
    """
    if not isinstance(model, nn.Module):
        raise MetapruneError(f"trace takes a torch.nn.Module, not {type(model).__name__}")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise MetapruneError(f"trace the module inside {type(model).__name__}: pass model.module")
    args = example_inputs if isinstance(example_inputs, tuple) else () if example_inputs is None else (example_inputs,)
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    captured = capture(model, tuple(args), dict(example_kwargs or {}))
    fuse_channel_shuffles(captured.graph)
    unpack_projections(captured)
    labelled = label_graph(captured, free_outputs)
    network = Network(model, captured, labelled, build_space(labelled, roles_of_atoms(captured, labelled)))
    if labelled.uncovered:
        import warnings

        ops = sorted({u.op for u in labelled.uncovered})
        warnings.warn(
            f"operators without a rule lock what enters them: {', '.join(ops)}", UncoveredOpWarning, stacklevel=2
        )
    return network
