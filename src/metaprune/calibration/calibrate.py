"""Calibration: one pass over unlabelled samples records what every operator sees that sums over channels."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metaprune.calibration.batches import Calls, calibration_batches
from metaprune.calibration.products import Product, Rows, find_products
from metaprune.core.arguments import check_arguments
from metaprune.core.rng import Rng
from metaprune.data import Data, Split
from metaprune.elastic.gated import Place, operand_at
from metaprune.elastic.program import Step
from metaprune.network import Network
from metaprune.objective.batch import batch_size_of
from metaprune.values import Plan

ROWS_PER_BATCH = 1536


@dataclass(frozen=True)
class Consumption:
    """What an operator sees of the channels that it sums over, over samples and positions.

    Attributes:
        rows: how many samples times positions.
        mean, second: first and second moment of every channel, float64 [channels].
        gram: of a convolution or linear layer, the mean of x x^T over sampled rows, float64 [groups, K, K]. K counts
            input channels times kernel positions in the weight's order. None elsewhere, and where it would not fit.
        inputs: the mean of x over the same rows, float64 [groups, K].
    """

    rows: int
    mean: Tensor
    second: Tensor
    gram: Tensor | None = None
    inputs: Tensor | None = None

    @property
    def variance(self) -> Tensor:
        """Variance of every channel, float64 [channels]."""
        return (self.second - self.mean.square()).clamp(min=0)


@dataclass(frozen=True)
class Calibration:
    """Statistics of a network's activations, wherever channels are consumed.

    Attributes:
        places: by the name of the node in the traced graph.
        products: the node of every convolution and linear layer, by the name of its weight.
        left: weights without a Gram matrix, and why.
        samples, seconds, bytes: what it took; bytes are those of the statistics.
    """

    places: Mapping[str, Consumption]
    products: Mapping[str, str]
    left: Mapping[str, str]
    samples: int
    seconds: float
    bytes: int

    def of_weight(self, name: str) -> Consumption:
        """Return what a weight is multiplied with, by its name in `net.tensors`."""
        return self.places[self.products[name]]


def calibrate(
    network: Network,
    data: Data | Split,
    *,
    samples: int = 1024,
    gram_mb: float = 1024,
    seed: int = 0,
    plan: Plan | None = None,
) -> Calibration:
    """Record what the network's operators see on `samples` samples, without labels and without gradients.

    Args:
        network: as `trace` returns it.
        data: its training split, or a split.
        samples: how many training samples are read.
        gram_mb: megabytes for Gram matrices; the largest that do not fit are left out, and named in `left`.
        seed: which samples.
        plan: records the cut network, and of the channels that stay alone; None is the full network.

    Raises:
        DataError: fewer than four samples.
        PlanError: the plan does not fit.
    """
    check_arguments(calibrate, locals())
    rng = Rng(seed).child("calibrate")
    split = data.train if isinstance(data, Data) else data
    batches = calibration_batches(network, split, samples, rng.child("samples"))
    return calibrate_on(network, batches, rng, gram_mb=gram_mb, plan=plan)


def calibrate_on(
    network: Network, batches: Calls, rng: Rng, *, gram_mb: float = 1024, plan: Plan | None = None
) -> Calibration:
    """Record what the network's operators see on these batches; see `calibrate`. `rng` draws rows of them."""
    began = time.perf_counter()
    recorder = _Recorder(network, plan, gram_mb * 2**20, rng)
    with rng.child("forward").torch_global():
        seen = recorder.read(batches)
    places = recorder.places()
    size = sum(t.nbytes for c in places.values() for t in vars(c).values() if isinstance(t, Tensor))
    products = {p.weight: name for name, p in recorder.products.items()}
    return Calibration(places, products, recorder.left, seen, round(time.perf_counter() - began, 2), size)


class _Recorder:
    """Adds up statistics over batches."""

    def __init__(self, network: Network, plan: Plan | None, gram_bytes: float, rng: Rng):
        self.network, self._at = network, network.at(plan)
        self._tensors = dict(self._at.default_tensors())
        self.products, self.left = find_products(network)
        self._draw = rng.child("rows").torch()
        self._sums: dict[str, tuple[int, Tensor, Tensor]] = {}  # rows, sum, sum of squares
        self._grams: dict[str, tuple[int, Tensor, Tensor]] = {}  # rows, sum of x x^T, sum of x
        self._with_gram = self._those_that_fit(gram_bytes)

    def _those_that_fit(self, gram_bytes: float) -> set[str]:
        """The smallest Gram matrices, as long as they fit."""

        def needed(product: Product) -> int:
            weight = self._tensors[product.weight]
            inputs = weight.numel() // weight.shape[product.out_dim]
            groups = product.node.args[6] if product.is_conv and len(product.node.args) > 6 else 1
            return 8 * inputs**2 * (groups if isinstance(groups, int) else 1)

        fitting: set[str] = set()
        for name, product in sorted(self.products.items(), key=lambda item: needed(item[1])):
            gram_bytes -= needed(product)
            if gram_bytes >= 0:
                fitting.add(name)
            else:
                self.left[product.weight] = f"its Gram matrix takes {needed(product) / 2**20:,.1f} MB"
        return fitting

    @torch.no_grad()
    def read(self, batches: Calls) -> int:
        """Run the network on all batches; returns the samples seen."""
        for args, kwargs in batches:
            self._at.execute(args, kwargs, tensors=self._tensors, call=self._call)
        return sum(batch_size_of([*args, *kwargs.values()]) for args, kwargs in batches)

    def _call(self, step: Step, args: list, kwargs: dict[str, Any]) -> Any:
        name = step.node.name
        product, carriers = self.products.get(name), self._carriers(name)
        rows = None if product is None else Rows.of(product, step, args, kwargs)
        if rows is not None:
            self._add_moments(name, rows.operands[rows.product.input], rows.product.channel_dim)
        elif carriers:
            self._add_moments(name, operand_at(carriers[0], args, kwargs), carriers[0].where.dim)
        result = step.target(*args, **kwargs)
        if rows is not None and name in self._with_gram:
            x = rows.inputs(rows.draw(result, ROWS_PER_BATCH, self._draw))
            _add(self._grams, name, (x.shape[1], (x.mT @ x).double(), x.sum(1).double()))
        return result

    def _carriers(self, name: str) -> Sequence[Place]:
        """Operands that carry what a node consumes; none where the cut network has another operator there."""
        is_other = self._at.survivors is not None and self.network.labelled.facts[name].rewrite is not None
        return () if is_other else self.network.gated.carriers.get(name, ())

    def _add_moments(self, name: str, value: Tensor, dim: int) -> None:
        if value.is_floating_point():
            rows = value.movedim(dim, 0).flatten(1)
            _add(self._sums, name, (rows.shape[1], rows.sum(1).double(), rows.square().sum(1).double()))

    def places(self) -> dict[str, Consumption]:
        places = {}
        for name, (rows, total, squares) in self._sums.items():
            count, gram, inputs = self._grams.get(name, (0, None, None))
            mean_gram = None if gram is None else gram / count
            mean_inputs = None if inputs is None else inputs / count
            places[name] = Consumption(rows, total / rows, squares / rows, mean_gram, mean_inputs)
        return places


def _add(sums: dict[str, tuple[int, Tensor, Tensor]], name: str, part: tuple[int, Tensor, Tensor]) -> None:
    before = sums.get(name)
    sums[name] = part if before is None else (before[0] + part[0], before[1] + part[1], before[2] + part[2])
