"""Weights of any plan without training: what consumes dropped channels is solved from the dense Gram matrices alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metaprune.calibration.calibrate import Calibration
from metaprune.calibration.moments import Moments
from metaprune.calibration.products import Product, find_products
from metaprune.elastic.batchnorm import OneBatch
from metaprune.elastic.prefix import SharedPrefix, same_draws
from metaprune.network import Network
from metaprune.objective import Objective
from metaprune.objective.batch import call_arguments
from metaprune.values import Plan

RIDGE = 1e-2  # of the mean diagonal of the Gram matrix
REMEMBERED = 32  # solutions of a product


class ClosedForm:
    """A network at any plan, with weights W' = W_k + W_r C_rk C_kk^-1 where channels r are dropped and k stay.

    C is the Gram matrix of what the dense network's layer sees, so that this is right where what stays is as it was;
    what earlier cuts changed is left to BatchNorm statistics. Structures are compared so, in one forward pass each.
    Solutions are remembered: neighbours in a search differ in few layers.
    """

    def __init__(self, network: Network, calibration: Calibration):
        self.network, self.calibration = network, calibration
        self._products, _ = find_products(network)
        self._solved: dict[str, dict[bytes, tuple[Tensor, Tensor | None]]] = {name: {} for name in self._products}

    def tensors(self, plan: Plan) -> dict[str, Tensor]:
        """Make the tensors at the widths of a plan."""
        network = self.network
        return dict(network.sliced(network.survivors(plan), tensors=self.full_size(plan)))

    def changed(self, plan: Plan) -> frozenset[str]:
        """Name the tensors that are not the dense ones: all that a plan cuts, as no other is solved anew."""
        alive = self.network.survivors(plan)
        parameters = self.network.labelled.parameters
        cut = {name for name, labels in parameters.items() if any(alive.cut(x) for x in labels if x is not None)}
        return frozenset(cut | {p.bias for p in self._products.values() if p.bias is not None and p.weight in cut})

    @torch.no_grad()
    def full_size(self, plan: Plan) -> dict[str, Tensor]:
        """Make the tensors of a plan at full size; what a plan drops is as it was."""
        network, labels = self.network, self.network.labelled.parameters
        alive = network.survivors(plan)
        full = {n: t.detach() for n, t in network.at().default_tensors().items()}
        for node, product in self._products.items():
            seen, label = self.calibration.places[node], labels[product.weight][1 - product.out_dim]
            if seen.gram is None or len(seen.gram) != 1 or label is None or not 0 < alive.count(label) < len(label):
                continue
            weight, bias = self._solution(node, product, alive.index(label), len(label))
            full[product.weight] = weight
            if product.bias is not None and bias is not None:
                full[product.bias] = full[product.bias] + bias
        return full

    def _solution(self, node: str, product: Product, index: Any, channels: int) -> tuple[Tensor, Tensor | None]:
        """Weight at full size, and what is added to the bias, for the channels `index` of the input."""
        remembered, key = self._solved[node], index.tobytes()
        if key in remembered:
            return remembered[key]
        seen, weight = self.calibration.places[node], self.network.tensors[product.weight].detach()
        assert seen.gram is not None and seen.inputs is not None
        matrix = product.matrix(weight, 1).to(seen.gram)
        entries = matrix.shape[-1] // channels
        kept = torch.from_numpy(index).to(weight.device)
        kept = (kept[:, None] * entries + torch.arange(entries, device=weight.device)).flatten()
        targets = (matrix @ seen.inputs[..., None])[..., 0]
        part = seen.gram[:, kept]
        moments = Moments(1, seen.inputs[:, kept], targets, part[..., kept], part @ matrix.mT, targets.square())
        solved = moments.ridge(matrix[..., kept], RIDGE, with_constant=True)
        changed = matrix.clone()
        changed[..., kept] = solved
        bias = None if product.bias is None else moments.intercept(solved).flatten().to(weight)
        if len(remembered) >= REMEMBERED:
            remembered.pop(next(iter(remembered)))
        remembered[key] = product.weight_of(changed, weight), bias
        return remembered[key]


class OutputLoss:
    """How far the outputs of a plan are from the dense ones, on one batch: weights in closed form, BatchNorm moved.

    BatchNorm statistics are the dense ones, moved by what the cut changed on the batch, so that no cut costs nothing.
    With other statistics in the dense network, every first cut would seem to cost the same.

    Args:
        batch: (inputs, target); the target is only passed on to the objective.
        objective: says how far two outputs are apart, by `distillation`.
    """

    def __init__(self, closed_form: ClosedForm, batch: tuple[Any, Any], objective: Objective):
        self._closed_form, self._objective = closed_form, objective
        (self._args, self._kwargs), self._target = call_arguments(batch[0]), batch[1]
        self._statistics = OneBatch()
        network, whole = closed_form.network, closed_form.network.at()
        with torch.no_grad(), same_draws():
            self._dense = whole.execute(self._args, self._kwargs, call=self._statistics.dense)
        self._prefix = SharedPrefix(
            network.program,
            whole.program(),
            network.tensors,
            self._args,
            dict(self._kwargs),
            is_stateful=bool(network.written),
        )

    @torch.no_grad()
    def __call__(self, plan: Plan) -> float:
        network, tensors = self._closed_form.network, self._closed_form.tensors(plan)
        at = network.at(plan)
        call = self._statistics.cut(lambda t: network.sliced(at.survivors, tensors=t), tensors)
        output = self._prefix.run(at.program(), tensors, self._closed_form.changed(plan), call)
        return float(self._objective.distillation(output, self._dense, self._target, 1.0))
