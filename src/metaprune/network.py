"""`Network`: a traced model. Its channel groups, its cost at any widths, and how it runs at any widths.

A network never changes: `with_tensors` and `with_latency` return new ones, and `at` looks at it at certain widths.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from metaprune.core.arguments import check_arguments, require_fits
from metaprune.core.errors import PlanError
from metaprune.cost.analytic import CostModel, PredictMs
from metaprune.cost.terms import cost_terms
from metaprune.elastic.batchnorm import DenseStatistics, calibrated
from metaprune.elastic.gated import Gated
from metaprune.elastic.masked import run_masked
from metaprune.elastic.program import CallStep, Program, ProgramAtWidths
from metaprune.elastic.weights import SlicedTensors
from metaprune.graph.call import Survivors, written_in_place
from metaprune.graph.captured import Captured, module_of, op_name
from metaprune.graph.explain import explain_lines
from metaprune.graph.labelling import Labelled, Uncovered
from metaprune.values import Branch, Cost, Plan, Space

# in ATen's names; a trailing underscore works in place
DROPOUTS = frozenset(
    f"{kind}dropout{tail}" for kind in ("", "feature_", "alpha_", "feature_alpha_") for tail in ("", "_")
)


class Network:
    """A captured graph, the labels of every tensor dimension, and the `Space` of channel groups.

    Holds the model itself (never changed) and reads its tensors; make one with `trace`.

    Example:
        net = trace(model, torch.zeros(1, 3, 32, 32))
        small = net.at(plan)
        logits = small.run(images)
        small.cost().macs
    """

    def __init__(self, model: nn.Module, captured: Captured, labelled: Labelled, space: Space):
        self.model = model
        self.captured = captured
        self.labelled = labelled
        self.space = space
        self._costs: dict[int, CostModel] = {}  # by batch, made when first asked for
        self._predict_ms: PredictMs | None = None
        self.switchable = self._find_switchable()
        self.program = Program(captured, labelled, space, self.switchable)

    def __repr__(self) -> str:
        cost = self.cost()
        return (
            f"Network({type(self.model).__name__}, {len(self.space)} groups, {cost.macs / 1e6:.1f}M MACs, "
            f"{cost.params / 1e6:.2f}M params)"
        )

    @property
    def device(self) -> torch.device:
        """Where the model's tensors are."""
        return self.program.device

    @property
    def branches(self) -> tuple[Branch, ...]:
        """Residual branches that a plan can drop whole, by keeping () of all their groups."""
        return self.space.branches

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
        """Say why the batch is fixed, why it was not recorded, and which statistics depend on how many channels are."""
        captured = self.captured
        said = [f"{captured.batch_fixed}; costs are of one call"] if captured.batch_fixed else []
        said += [f"captured by torch.export, as {captured.not_recorded}"] if captured.not_recorded else []
        return said + list(dict.fromkeys(n for f in self.labelled.facts.values() for n in f.notes))

    @cached_property
    def model_tensors(self) -> dict[str, torch.Tensor]:
        """`tensors` as the model itself holds them, also where this network has other weights."""
        model = self.model
        named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        return {**self.tensors, **{n: t for n, t in named if n in self.tensors}}

    def with_tensors(self, tensors: Mapping[str, torch.Tensor]) -> Network:
        """Return this network with other weights, for methods that read `tensors`; it shares graph, space and costs."""
        check_arguments(Network.with_tensors, locals())
        if missing := [name for name in self.tensors if name not in tensors]:
            raise PlanError(f"tensors lack {missing[0]!r}: give one by every name of net.tensors")
        new = copy.copy(self)
        taken = {
            n: nn.Parameter(tensors[n].detach(), requires_grad=False) if isinstance(t, nn.Parameter) else tensors[n]
            for n, t in self.tensors.items()
        }
        new.captured = replace(self.captured, tensors=taken)
        return new

    def with_latency(self, predict_ms: PredictMs | None) -> Network:
        """Return this network with milliseconds as one more cost, for budgets too; None leaves them out again.

        Args:
            predict_ms: widths [n, groups] -> ms [n], as `LatencyTable.predict_ms`. The milliseconds are those of a
                forward pass of the table's own batch, whatever `batch` a cost is asked for.
        """
        check_arguments(Network.with_latency, locals())
        new = copy.copy(self)
        new._costs = {batch: replace(costs, predict_ms=predict_ms) for batch, costs in self._costs.items()}
        new._predict_ms = predict_ms
        return new

    def _find_switchable(self) -> frozenset[str]:
        """Nodes that follow the training flag: dropout, and BatchNorm over running statistics that are the model's."""
        names = []
        modules = dict(self.model.named_modules(remove_duplicate=False))
        for node in self.captured.graph.nodes:
            if node.op != "call_function":
                continue
            if op_name(node.target) in DROPOUTS and node.args[2] is False:
                names.append(node.name)
            owned = isinstance(modules.get(module_of(node)), nn.modules.batchnorm._BatchNorm)
            if op_name(node.target) == "batch_norm" and node.args[5] is False and owned:
                names.append(node.name)
        return frozenset(names)

    @cached_property
    def written(self) -> frozenset[str]:
        """The model's tensors that the traced forward writes into: runs get copies of them."""
        sources = self.captured.sources
        nodes = (n for n in self.captured.graph.nodes if n.op == "placeholder" and n.name in sources)
        return frozenset(sources[n.name] for n in nodes if written_in_place(n))

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
        check_arguments(Network.survivors, locals())
        alive = np.ones(len(self.labelled.atoms), dtype=bool)
        for group, mask in zip(self.space, plan.masks(self.space), strict=True):
            alive[group.atoms] = mask
        return Survivors(self.labelled.atoms, alive)

    def at(self, widths: Plan | Survivors | None = None) -> NetworkAtWidths:
        """Return this network with only what a plan keeps, or what survives; None is the full network.

        Raises:
            PlanError: the plan does not fit.
        """
        check_arguments(Network.at, locals())
        if isinstance(widths, Plan):
            key = tuple(sorted(widths.keep.items()))
            return NetworkAtWidths(self, self.survivors(widths), key) if key else NetworkAtWidths(self, None, "full")
        return NetworkAtWidths(self, widths, "full" if widths is None else None)

    def cost_model(self, batch: int = 1) -> CostModel:
        """Build what `cost` evaluates, for `batch` samples."""
        check_arguments(Network.cost_model, locals())
        if batch < 1:
            raise PlanError(f"batch={batch} is no number of samples: give 1 or more")
        if batch not in self._costs:
            terms = cost_terms(self.captured, self.labelled, self.space, batch)
            self._costs[batch] = CostModel(terms, self.space, self._predict_ms)
        return self._costs[batch]

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
            batch: samples per forward pass. MACs and peak_bytes scale with it; latency_ms does not, it is always of
                the batch that the latency table was measured with.
            masks: of single weights at full size, with a Plan; they change `nonzero` alone.
        """
        check_arguments(Network.cost, locals())
        if isinstance(widths, Plan):
            return self.at(widths).cost(batch=batch, masks=masks)
        model = self.cost_model(batch)
        if widths is None:
            return model.of_widths(self.space.widths)
        if isinstance(widths, Mapping):
            full = self.space.widths.copy()
            for name, width in widths.items():
                full[self.space.index[self.space[name].name]] = width
            widths = full
        array = np.asarray(widths, dtype=np.int64)
        if array.shape[-1:] != self.space.widths.shape or (array < 0).any() or (array > self.space.widths).any():
            raise PlanError(
                f"widths must be within 0..full for each of the {len(self.space)} groups; got shape {array.shape}"
            )
        self.space.require_whole_branches(array)
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
            args: positional inputs, as traced; any number of samples.
            plan: what stays; None keeps all.
            tensors: by parameter name; with a plan, already of the plan's shapes (generated, rewritten, sliced once)
                unless `masked`. By default the model's own, sliced on the fly, with gradients into the full parameters.
            masked: run at full size with dropped indices zero where they are consumed (the reference semantics).
            training: BatchNorm uses batch statistics, dropout drops. Running statistics are copies: the model's own
                stay as they are (recalibrate the structure that is chosen).
            kwargs: keyword inputs, as traced.
        """
        at = self.at(plan)
        if not masked or at.survivors is None:
            return at.execute(args, kwargs, tensors=tensors, training=training)
        whole = self.at()
        given = whole.default_tensors(training) if tensors is None else tensors
        program = whole.program(training=training)
        return run_masked(self.program, program, self.labelled, given, at.survivors, args, kwargs)

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
        """Describe each layer on a line: width of its output, channel group, whether it can be pruned or why not."""
        return "\n".join(explain_lines(self.model, self.labelled, self.space, self.tensors, self.notes))


@dataclass(frozen=True)
class NetworkAtWidths:
    """A network at certain widths, without a cut: how it runs there and what it costs. Made by `Network.at`.

    survivors: which channels there are; None: all.
    key: names the survivors in the network's cache of programs; None: only this object keeps its programs.
    """

    network: Network
    survivors: Survivors | None
    key: Any = None
    _programs: dict[Any, ProgramAtWidths] = field(default_factory=dict, repr=False, compare=False)

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """The network's tensors at these widths: sliced on access, with gradients into the full parameters."""
        return self.network.sliced(self.survivors)

    @property
    def widths(self) -> np.ndarray:
        """Surviving channels of every group, int64 [groups]."""
        space = self.network.space
        return space.widths if self.survivors is None else self.survivors.widths(space)

    def run(
        self,
        *args: Any,
        tensors: Mapping[str, torch.Tensor] | None = None,
        training: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Call the network with the model's own inputs; returns what the model returns, with gradients.

        Args:
            tensors: by parameter name, already of these widths; by default the network's own.
            training: BatchNorm uses batch statistics, dropout drops. With the network's own tensors, running
                statistics are updated in copies.
        """
        return self.execute(args, kwargs, tensors=tensors, training=training)

    def execute(
        self,
        args: tuple,
        kwargs: Mapping[str, Any] | None = None,
        *,
        tensors: Mapping[str, torch.Tensor] | None = None,
        training: bool = False,
        call: CallStep | None = None,
    ) -> Any:
        """Like `run`, for inputs that are at hand as a tuple and a dict. `call` replaces how a step is executed."""
        require_fits("training", training, bool)
        tensors = self.default_tensors(training) if tensors is None else tensors
        return self.network.program.run(self.program(training=training), tensors, args, dict(kwargs or {}), call)

    def program(
        self, *, training: bool = False, dtype: torch.dtype | None = None, rounded: bool = False
    ) -> ProgramAtWidths:
        """Return the program with its constants baked for these widths; see `Program.at`."""
        wanted = (training, dtype, rounded)
        if wanted not in self._programs:
            self._programs[wanted] = self.network.program.at(
                self.survivors, key=self.key, training=training, dtype=dtype, rounded=rounded
            )
        return self._programs[wanted]

    def default_tensors(self, training: bool = False) -> Mapping[str, torch.Tensor]:
        """Return `tensors`, with copies of those that the graph writes into, and for training of all buffers."""
        tensors, written = self.network.tensors, self.network.written
        if not training and not written:
            return self.tensors
        copied = {
            n: t.clone() if n in written or (training and not isinstance(t, nn.Parameter)) else t
            for n, t in tensors.items()
        }
        return self.network.sliced(self.survivors, tensors=copied)

    def calibrated(
        self,
        tensors: Mapping[str, torch.Tensor],
        batches: Iterable[tuple[tuple, dict[str, Any]]],
        measured: Mapping[str, torch.Tensor] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return `tensors` of these widths with BatchNorm statistics from (args, kwargs) batches.

        Args:
            measured: what the full network gives on the same batches, `net.at().calibrated(net.tensors, batches)`. The
                network's running statistics are then moved by what differs from it: the full network comes back as it
                is. Only for weights that come from the network's own.
        """
        network = self.network
        dense = None
        if measured is not None:
            dense = DenseStatistics(self.tensors, network.sliced(self.survivors, tensors=measured))
        return calibrated(network.program, self.program(), tensors, batches, network.switchable, dense)

    def cost(self, *, batch: int = 1, masks: Mapping[str, torch.Tensor] | None = None) -> Cost:
        """Compute the exact cost; see `Network.cost`."""
        check_arguments(NetworkAtWidths.cost, locals())
        alive = self.network.survivors(Plan()) if self.survivors is None else self.survivors
        masked = sum(int((~m).sum()) for m in self.masks(masks or {}).values())
        return self.network.cost_model(batch).of_survivors(alive, masked)

    def masks(self, masks: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Masks of single weights (see `Proposal.masks`), cut to these widths.

        Raises:
            PlanError: a mask that is no bool tensor of a parameter's full shape.
        """
        for name, mask in masks.items():
            parameter = self.network.tensors.get(name)
            if not isinstance(parameter, nn.Parameter) or mask.dtype != torch.bool or mask.shape != parameter.shape:
                raise PlanError(f"masks[{name!r}] must be a bool tensor of the full shape of a parameter")
        return dict(self.network.sliced(self.survivors, tensors=masks))
