"""`cut`: a network and a plan in, a smaller proved network out. All or nothing; the input model is never changed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import fx, nn

from metaprune.core.arguments import check_arguments
from metaprune.core.errors import ConfigError, VacuousProofWarning, VerificationError
from metaprune.elastic.folding import lost_tensors
from metaprune.elastic.weights import zeroed
from metaprune.network import Network
from metaprune.surgery.graph_form import graph_form
from metaprune.surgery.hf_config import ConfigFit, fit_config
from metaprune.surgery.module_form import Attributes, verified_module
from metaprune.surgery.verify import TOLERANCE, Proof
from metaprune.values import Plan

Form = Literal["auto", "module", "graph"]


@dataclass(frozen=True)
class Pruned:
    """The smaller model.

    form: `module` (the user's own class) or `graph` (a torch.fx.GraphModule); `why` says why it is that one.
    error: relative float64 difference between sliced and masked network; None if nothing was compared.
    unproved: why nothing was compared, although a proof was asked for; empty otherwise.
    shapes: parameter name -> (shape before, shape after), for those that changed and are still there.
    attributes: module path -> attribute -> value that the module form needed.
    config: of a transformers model in module form, whether its config could follow the cut, and so save_pretrained.
    masks: of single weights that were set to zero, at full size; `network.at(plan).masks(masks)` are the model's.
    """

    network: Network  # the original, as traced
    model: nn.Module
    form: str
    why: str
    plan: Plan
    error: float | None
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    attributes: Attributes = field(default_factory=dict)
    config: ConfigFit = field(default_factory=ConfigFit)
    masks: Mapping[str, torch.Tensor] = field(default_factory=dict)
    unproved: str = ""

    def as_graph(self) -> nn.Module:
        """Build the structure as a graph form with the original's weights (what `load(form="graph")` builds on)."""
        return graph_form(self.network, self.network.survivors(self.plan), self.network.tensors)


def cut(
    network: Network,
    plan: Plan,
    *,
    form: Form = "auto",
    verify: bool = True,
    weights: Mapping[str, torch.Tensor] | None = None,
    masks: Mapping[str, torch.Tensor] | None = None,
) -> Pruned:
    """Slice every parameter to what `plan` keeps.

    Args:
        network: as `trace` returns it.
        plan: which channels of which groups stay.
        form: `auto` returns the module form where it verifies, else the graph form.
        verify: prove sliced = masked and graph form = sliced on the example inputs (constant ones get noise). A module
            form is compared with the sliced graph in any case.
        weights: full-size tensors by parameter name that replace the model's own.
        masks: full-size bool tensors by parameter name; where False, that weight is zero in the cut network, and in
            the masked original that it is compared with.

    Raises:
        PlanError: the plan or a mask does not fit the network.
        VerificationError: sliced and masked network differ, or form="module" is not possible; nothing was changed.
    """
    check_arguments(cut, locals())
    if form not in ("auto", "module", "graph"):
        raise ConfigError(f"form is auto, module or graph, not {form!r}")
    alive = network.survivors(plan)
    tensors = {**network.tensors, **(weights or {})}
    for name, value in (weights or {}).items():
        if name not in network.tensors or value.shape != network.tensors[name].shape:
            raise ConfigError(f"weights[{name!r}] must be a full-size tensor of the network")
    network.at(plan).masks(masks or {})  # complains of masks that do not fit
    tensors = zeroed(tensors, masks or {})
    proof = Proof(network, alive, tensors)
    error = proof.check() if verify else None
    unproved = proof.vacuous() if error == 0.0 else ""  # rounding differs only in what depends on the cut
    if unproved:
        error = None
        warnings.warn(
            f"the cut is not proved, as there is nothing to compare: {unproved}", VacuousProofWarning, stacklevel=2
        )
    model, attributes, why = (
        verified_module(network, alive, tensors, proof) if form != "graph" else (None, {}, "asked for")
    )
    if model is None and form == "module":
        raise VerificationError(f"no module form: {why}. The graph form is possible: form='graph'")
    if model is None:
        model, kind, attributes = graph_form(network, alive, tensors), "graph", {}
        if verify:
            _check_graph(model, proof)
    else:
        kind = "module"
    shapes, lost = {}, lost_tensors(network.space, alive)
    for name, tensor in network.tensors.items():
        if name in lost:
            continue
        labels = network.labelled.parameters.get(name, [None] * tensor.dim())
        after = tuple(n if label is None else alive.count(label) for n, label in zip(tensor.shape, labels, strict=True))
        if after != tuple(tensor.shape):
            shapes[name] = (tuple(tensor.shape), after)
    config = fit_config(model, shapes, attributes, proof) if kind == "module" else ConfigFit()
    return Pruned(network, model, kind, why, plan, error, shapes, attributes, config, dict(masks or {}), unproved)


def _check_graph(model: fx.GraphModule, proof: Proof) -> None:
    """Raises VerificationError unless the graph form is the sliced graph."""
    try:
        error = proof.graph_error(model)
    except Exception as failure:
        raise VerificationError(
            f"the graph form does not run: {failure}. Nothing was changed; please report it"
        ) from failure
    if not error <= TOLERANCE:
        raise VerificationError(f"the graph form differs from the sliced graph by {error:.2e}. Please report it")
