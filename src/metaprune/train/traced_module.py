"""A traced network at certain widths as a module that the training loop takes: nothing is cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metaprune.elastic.weights import unslice_tensor
from metaprune.graph.call import Survivors
from metaprune.network import Network
from metaprune.objective import Objective
from metaprune.objective.batch import call_arguments, channels_last
from metaprune.values import Plan


class TracedModule(nn.Module):
    """Trains the surviving rows of full-size `tensors` (by name); `full_size` puts them back into their places."""

    def __init__(self, network: Network, tensors: Mapping[str, Tensor], plan: Plan | None = None):
        super().__init__()
        self._at = [network.at(plan)]  # in a list: not a submodule, the user's model stays out
        self._names: dict[str, str] = {}
        for i, (name, tensor) in enumerate(network.sliced(self.alive, tensors=tensors).items()):
            copy = tensor.detach().clone()
            self._names[name] = f"tensor_{i}"
            if isinstance(network.tensors[name], nn.Parameter):
                self.register_parameter(f"tensor_{i}", nn.Parameter(copy, requires_grad=copy.is_floating_point()))
            else:
                self.register_buffer(f"tensor_{i}", copy)

    @property
    def network(self) -> Network:
        return self._at[0].network

    @property
    def alive(self) -> Survivors | None:
        """Which channels there are; None: all."""
        return self._at[0].survivors

    def tensors(self) -> dict[str, Tensor]:
        """Return the module's own tensors by the network's names."""
        return {name: getattr(self, attribute) for name, attribute in self._names.items()}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._at[0].execute(args, kwargs, tensors=self.tensors(), training=self.training)

    def calibrate(self, batches: Sequence[Any]) -> None:
        """Set BatchNorm statistics from (inputs, target) batches."""
        calls = [call_arguments(channels_last(inputs)) for inputs, _ in batches]
        calibrated = self._at[0].calibrated(self.tensors(), calls)
        with torch.no_grad():
            for name, tensor in self.tensors().items():
                if calibrated[name] is not tensor:
                    tensor.copy_(calibrated[name])

    def tune(self, batches: Sequence[Any], lr: float, objective: Objective) -> None:
        """Take one SGD step (momentum 0.9) on each (inputs, target) batch."""
        sgd = torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=lr, momentum=0.9)
        self.train()
        for inputs, target in batches:
            args, kwargs = call_arguments(channels_last(inputs))
            sgd.zero_grad()
            with torch.enable_grad():
                objective.loss(self(*args, **kwargs), target).backward()
            sgd.step()

    @torch.no_grad()
    def full_size(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `tensors` with the trained rows in their places."""
        labels = self.network.labelled.parameters
        return {n: unslice_tensor(t, tensors[n], labels.get(n), self.alive) for n, t in self.tensors().items()}
