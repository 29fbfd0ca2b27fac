"""An exponential moving average of a model's tensors while it trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """Averages of the floating parameters of `model`; buffers (BatchNorm statistics) are the latest ones.

    average <- decay * average + (1 - decay) * weights, after every step; it starts at the weights.
    """

    def __init__(self, model: nn.Module, decay: float):
        self._tensors = {n: p for n, p in model.named_parameters() if p.is_floating_point()}
        self.average = {n: p.detach().clone() for n, p in self._tensors.items()}
        self._update = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        self._update(list(self.average.values()), [p.detach() for p in self._tensors.values()], None)

    @torch.no_grad()
    def restore(self, average: Mapping[str, Tensor]) -> None:
        """Set the average, as a checkpoint holds it."""
        for name, tensor in self.average.items():
            tensor.copy_(average[name])

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and the average."""
        for name, parameter in self._tensors.items():
            held = parameter.detach().clone()
            parameter.copy_(self.average[name])
            self.average[name].copy_(held)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model have the average inside the block."""
        self.swap()
        try:
            yield
        finally:
            self.swap()
