"""One network and its mask generator: what reads a data set and emits gates for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metaprune.methods.gating.training import GatedLoss, Sample, TrainableTensors
from metaprune.methods.stamp.generator import MaskGenerator
from metaprune.methods.stamp.reader import Head, Reader
from metaprune.network import Network
from metaprune.objective import Classification


class Learner(GatedLoss):
    """Holds no weights of its own but the generator's; `reference` are the frozen tensors that sets are read with."""

    def __init__(
        self, network: Network, generator_of: Any, reference: Mapping[str, Tensor], metric: str, temperature: float
    ):
        super().__init__(network, metric, temperature, Classification())  # episodes are about classes
        self.head = Head.of(network)
        self.reader = Reader(network, self.gated, self.head, reference)
        self.generator: MaskGenerator = generator_of(self.gated.widths, self.reader.tapped, self.head.features)
        self.generator.to(network.device)

    @property
    def gates(self) -> int:
        """How many gates there are."""
        return sum(self.gated.widths)

    def weights(self, tensors: Mapping[str, Tensor], classes: int) -> TrainableTensors:
        """Trainable copies of `tensors`, with a head of zeros for `classes` classes."""
        return self.trainable(tensors, {self.head.weight, self.head.bias}, classes)

    def gates_of(self, sample: Sample, share: float) -> Any:
        """Generate the gate distribution for a sample."""
        return self.generator(self.reader(sample.args, sample.kwargs), sample.target, share)

    @torch.no_grad()
    def probabilities(self, samples: Sequence[Sample], share: float) -> list[np.ndarray]:
        """Keep probabilities [gates] per group (or what else has gates): the mean over samples of one data set."""
        self.generator.eval()
        each = [self.gates_of(sample, share).probabilities() for sample in samples]
        self.generator.train()
        return [torch.stack(group).mean(dim=0).cpu().numpy() for group in zip(*each, strict=True)]
