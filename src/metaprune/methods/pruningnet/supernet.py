"""The network that is every structure at once: what is trained, scored and searched."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metaprune.core.rng import Rng
from metaprune.cost.analytic import CostModel
from metaprune.elastic.weights import unslice_tensor
from metaprune.methods.pruningnet.banks import Bank, StructureTensors
from metaprune.methods.pruningnet.closed_form import ClosedFormSupernet
from metaprune.methods.pruningnet.config import Measure, Sampling
from metaprune.network import Network, NetworkAtWidths
from metaprune.objective import Objective, signed
from metaprune.objective.batch import batch_size_of, call_arguments, channels_last, map_tensors
from metaprune.search.encoding import BudgetSampler, WidthEncoding
from metaprune.train.evaluate import quality_on
from metaprune.train.loss import TrainLoss

STRATA, PER_STRATUM = 16, 256  # budgets that structures are drawn for, and structures of each


def structures_by_cost(codec: WidthEncoding, costs: CostModel) -> np.ndarray:
    """Genomes [STRATA * PER_STRATUM, genes], each drawn as a search under a budget draws its first ones.

    The budgets are MACs, evenly spaced on a log scale from the narrowest structure to the widest.
    """
    draw = Rng(0).child("structures by cost").numpy()
    least, most = costs.metric("macs", codec.widths(np.stack([codec.smallest, codec.full])))
    budgets = np.geomspace(least, most, STRATA + 1)[1:]
    return np.concatenate([BudgetSampler(codec, costs, {"macs": b}).sample(PER_STRATUM, draw) for b in budgets])


class Supernet(nn.Module):
    """A traced network with weights from a bank, at widths drawn anew for every mini-batch.

    In training mode a forward pass returns a tuple with one output per drawn structure; the draw is from torch's
    global generator, so that a seeded loop sees the same structures again, in every process. In evaluation mode it
    runs the widest structure on batch statistics (running ones fit no structure; see `Scorer`).

    Args:
        sampling: `uniform`: one structure, every gene uniform over its candidates (MetaPruning). `stratified`: one
            of `structures_by_cost`. `sandwich`: the widest, the narrowest and `structures` - 2 random ones
            (Universally Slimmable Networks, ICCV 2019).
    """

    def __init__(
        self, network: Network, codec: WidthEncoding, bank: Bank, sampling: Sampling = "uniform", structures: int = 4
    ):
        super().__init__()
        self.bank = bank
        self._network, self.codec = [network], codec  # in a list: not a submodule, the user's model stays out
        self.sampling, self.structures = sampling, structures
        self.by_cost = structures_by_cost(codec, network.cost_model()) if sampling == "stratified" else None

    @property
    def network(self) -> Network:
        return self._network[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.training:
            return self.run(self.codec.widths(self.codec.full), args, kwargs, training=True)
        return tuple(self.run(widths, args, kwargs, training=True) for widths in self.codec.widths(self._draw()))

    def run(self, widths: np.ndarray, args: tuple, kwargs: Mapping[str, Any], *, training: bool = False) -> Any:
        """Run the network at `widths` [groups], differentiable in the bank."""
        weights, alive = self.weights(widths)
        at = self.network.at(alive)
        return at.execute(channels_last(args), channels_last(kwargs), tensors=weights, training=training)

    def weights(self, widths: np.ndarray, full_size: bool = False) -> tuple[StructureTensors, Any]:
        """Make the tensors of a structure, and its survivors. full_size: not cropped, as a `Proposal` carries them."""
        alive = self.codec.survivors(self.network, widths)
        ratios = torch.from_numpy(np.asarray(widths) / self.network.space.widths)
        return self.bank(None if full_size else alive, ratios), alive

    def _draw(self) -> np.ndarray:
        """Genomes [structures, genes]."""
        if self.by_cost is not None:
            return self.by_cost[torch.randint(len(self.by_cost), (1,)).numpy()]
        sizes = torch.from_numpy(self.codec.sizes)
        count = 1 if self.sampling == "uniform" else self.structures - 2
        random = (torch.rand(count, len(sizes), dtype=torch.float64) * sizes).long().numpy()
        if self.sampling == "uniform":
            return random
        return np.concatenate([self.codec.full[None], self.codec.smallest[None], random])


class SupernetLoss(TrainLoss):
    """Mean loss over the drawn structures. With `distil`, all but the first (the widest) learn its soft output."""

    def __init__(self, objective: Objective, label_smoothing: float, distil: bool):
        super().__init__(objective, label_smoothing)
        self.distil = distil

    def __call__(self, output: Any, inputs: Any, target: Any) -> Tensor:
        widest, *narrower = output
        losses = [super().__call__(widest, inputs, target)]
        taught = map_tensors(widest, Tensor.detach)
        for one in narrower:
            if self.distil:
                losses.append(self.objective.distillation(one, taught, target, 1.0))
            else:
                losses.append(super().__call__(one, inputs, target))
        return torch.stack(losses).mean()

    def judged(self, output: Any) -> Any:
        """Take the widest structure's output."""
        return output[0]


def _first(batches: list[Any], samples: int) -> list[Any]:
    """Take (inputs, labels) batches until they hold `samples` samples."""
    ends = itertools.accumulate(batch_size_of(inputs) for inputs, _ in batches)
    return batches[: 1 + sum(end < samples for end in ends)]


class Scorer:
    """How good a structure is with the supernet's weights: statistics from a fixed calibration set, then validation.

    Batches stay on the device they are on. Weights of a structure are made once, not once per batch.

    Args:
        calibration: (inputs, labels) batches, of training images.
        validation: (inputs, labels) batches that the supernet was not trained on.
        objective: what structures are judged by.
        measure: what `score` is, of which more is better: exp of minus the loss, or the objective's primary metric
            (negated where less of it is better).
        recalibrate: False scores with the model's own running statistics (for the ablation; it does not work).

    With weights in closed form, statistics are the network's own, moved by what the cut changed on `calibration`.
    """

    def __init__(
        self,
        supernet: Supernet | ClosedFormSupernet,
        calibration: list[Any],
        validation: list[Any],
        objective: Objective,
        measure: Measure = "likelihood",
        *,
        recalibrate: bool = True,
    ):
        self.supernet, self.objective, self.measure = supernet, objective, measure
        self.validation = [(channels_last(inputs), labels) for inputs, labels in validation]
        self.calibration = calibration if recalibrate else []
        self._calibration = [call_arguments(channels_last(i)) for i, _ in self.calibration]
        self._measured: Mapping[str, Tensor] | None = None
        if isinstance(supernet, ClosedFormSupernet):
            network = supernet.network
            self._measured = network.at().calibrated(network.tensors, self._calibration)

    def __call__(self, widths: np.ndarray) -> dict[str, float]:
        """`score`, the primary metric as `metric`, and the mean loss as `loss`. Leaves modes and random state alone."""
        with torch.no_grad():
            at, tensors = self.calibrated(widths)

        def run(inputs: Any) -> Any:
            return at.execute(*call_arguments(inputs), tensors=tensors)

        quality = quality_on(run, self.validation, self.objective)
        loss, primary = quality["loss"], self.objective.primary
        metric = quality.metrics.get(primary.name, loss)
        likelihood = math.exp(-max(loss, -700.0)) if math.isfinite(loss) else 0.0
        return {
            "score": likelihood if self.measure == "likelihood" else signed(primary, metric),
            "metric": metric,
            "loss": loss,
        }

    def on_fewer(self, samples: int) -> Scorer:
        """Make a scorer that reads only the first batches of both sets, `samples` samples or a few more of each."""
        calibration, validation = (_first(part, samples) for part in (self.calibration, self.validation))
        return Scorer(self.supernet, calibration, validation, self.objective, self.measure)

    @property
    def samples(self) -> tuple[int, int]:
        """Samples of calibration and of validation."""
        calibration, validation = (
            sum(batch_size_of(i) for i, _ in part) for part in (self.calibration, self.validation)
        )
        return calibration, validation

    def score(self, widths: np.ndarray) -> float:
        """Return the score alone."""
        return self(widths)["score"]

    def calibrated(self, widths: np.ndarray) -> tuple[NetworkAtWidths, dict[str, Tensor]]:
        """Return the network at `widths`, and its tensors with statistics of the calibration set."""
        weights, alive = self.supernet.weights(widths)
        at = self.supernet.network.at(alive)
        with torch.no_grad():
            tensors = dict(weights)
        return at, at.calibrated(tensors, self._calibration, self._measured)

    def full_size(self, widths: np.ndarray) -> dict[str, Tensor]:
        """Return all tensors uncropped, the calibrated statistics in their places: what a `Proposal` carries."""
        _, tensors = self.calibrated(widths)
        weights, alive = self.supernet.weights(widths, full_size=True)
        network = self.supernet.network
        with torch.no_grad():
            full = {name: t.clone() for name, t in weights.items()}
        for name, t in tensors.items():
            if not isinstance(network.tensors[name], nn.Parameter):
                full[name] = unslice_tensor(t, full[name], network.labelled.parameters.get(name), alive)
        return full
