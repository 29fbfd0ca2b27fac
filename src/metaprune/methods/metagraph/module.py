"""A traced network at one structure as a module that the training loop takes: no cut, weights of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metaprune.elastic.batchnorm import calibrated
from metaprune.elastic.weights import unslice_tensor
from metaprune.network import Network
from metaprune.objective import Objective
from metaprune.objective.batch import call_arguments, channels_last
from metaprune.values import Plan


class Structure(nn.Module):
    """Holds the surviving rows of `tensors` (full size, by name); `full_size` puts what was trained back."""

    def __init__(self, network: Network, tensors: Mapping[str, Tensor], plan: Plan | None = None):
        super().__init__()
        self._network = [network]  # in a list: not a submodule, the user's model stays out
        self.alive = None if plan is None or not plan.keep else network.survivors(plan)
        self._key = "full" if self.alive is None else tuple(sorted(plan.keep.items()))  # type: ignore[union-attr]
        self._names: dict[str, str] = {}
        for i, (name, tensor) in enumerate(network.sliced(self.alive, tensors=tensors).items()):
            own = tensor.detach().clone()
            self._names[name] = f"tensor_{i}"
            if isinstance(network.tensors[name], nn.Parameter):
                self.register_parameter(f"tensor_{i}", nn.Parameter(own, requires_grad=own.is_floating_point()))
            else:
                self.register_buffer(f"tensor_{i}", own)

    @property
    def network(self) -> Network:
        return self._network[0]

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, attribute) for name, attribute in self._names.items()}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        program = self.network.program
        structure = program.structure(self.alive, key=self._key, training=self.training)
        return program.run(structure, self.tensors(), args, kwargs)

    def calibrate(self, batches: Sequence[Any]) -> None:
        """BatchNorm statistics from (inputs, target) batches."""
        program = self.network.program
        given = [call_arguments(channels_last(inputs)) for inputs, _ in batches]
        found = calibrated(
            program, program.structure(self.alive, key=self._key), self.tensors(), given, self.network.switchable
        )
        with torch.no_grad():
            for name, tensor in self.tensors().items():
                if found[name] is not tensor:
                    tensor.copy_(found[name])

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
        """`tensors` with the trained rows in their places."""
        labels = self.network.labelled.parameters
        return {n: unslice_tensor(t, tensors[n], labels.get(n), self.alive) for n, t in self.tensors().items()}
