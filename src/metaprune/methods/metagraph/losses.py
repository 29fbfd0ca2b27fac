"""The loss of a cut network as a function of the full one's tensors: what a step of meta-training sends back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metaprune.methods.metagraph.pruner import Batches
from metaprune.network import Network, NetworkAtWidths
from metaprune.objective import Objective
from metaprune.objective.base import primary_of
from metaprune.objective.batch import call_arguments, channels_last


def tuned_loss(
    at: NetworkAtWidths,
    small: Mapping[str, Tensor],
    batches: Batches,
    objective: Objective,
    steps: int,
    lr: float,
) -> tuple[float, float]:
    """Loss and primary metric on the batches after the first `steps`, once trained on those.

    `small`: tensors of these widths; the gradient at the trained weights is passed back through them (first-order
    MAML, Finn et al. 2017), which with `steps=0` is the plain gradient.
    """
    names = [n for n, t in small.items() if t.requires_grad]
    tuned = {n: small[n].detach().clone().requires_grad_() for n in names}
    sgd = torch.optim.SGD(tuned.values(), lr=lr, momentum=0.9)
    used = _with_own_statistics(at.network, small) | tuned

    def run(args: tuple, kwargs: dict[str, Any]) -> Any:
        return at.execute(args, kwargs, tensors=used, training=True)

    for batch in batches[:steps]:
        sgd.zero_grad()
        _averaged(run, [batch], objective)
        sgd.step()
    sgd.zero_grad()
    figures = _averaged(run, batches[steps:], objective)
    _pass_back(small, tuned)
    return figures


def gated_loss(
    network: Network, tensors: Mapping[str, Tensor], gates: Sequence[Tensor], batches: Batches, objective: Objective
) -> tuple[float, float]:
    """Loss and primary metric of the full-size network under `gates`; gradients go to them and to `tensors`."""
    used = _with_own_statistics(network, tensors)
    leaves = {k: gate.detach().requires_grad_() for k, gate in enumerate(gates)}
    figures = _averaged(
        lambda a, k: network.gated.run(used, list(leaves.values()), a, k, training=True), batches, objective
    )
    _pass_back(dict(enumerate(gates)), leaves)
    return figures


def _averaged(
    run: Callable[[tuple, dict[str, Any]], Any], batches: Batches, objective: Objective
) -> tuple[float, float]:
    """Loss and primary metric over all batches; the gradient is added up where `run` got its tensors."""
    losses, metrics = [], []
    for inputs, target in batches:
        output = run(*call_arguments(channels_last(inputs)))
        loss = objective.loss(output, target)
        (loss / len(batches)).backward()
        losses.append(loss.item())
        metrics.append(primary_of(objective, output, target, losses[-1]))
    return sum(losses) / len(batches), sum(metrics) / len(batches)


def _pass_back(sources: Mapping[Any, Tensor], leaves: Mapping[Any, Tensor]) -> None:
    """The gradient that reached the leaves, on through what they were detached from."""
    reached = [n for n, leaf in leaves.items() if leaf.grad is not None and sources[n].requires_grad]
    torch.autograd.backward([sources[n] for n in reached], [leaves[n].grad for n in reached])


def _with_own_statistics(network: Network, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Training mode writes running statistics: into copies."""
    copies = dict(tensors)
    return copies | {n: t.clone() for n, t in copies.items() if not isinstance(network.tensors[n], nn.Parameter)}
