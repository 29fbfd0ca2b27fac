"""Cross-entropy of a cut network as a function of the full one's tensors: what a step of meta-training sends back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metaprune.elastic.gated import Gated
from metaprune.methods.metagraph.pruner import Batches
from metaprune.network import Network
from metaprune.train.batch import call_arguments, channels_last, cross_entropy, logits_of


def tuned_loss(
    network: Network, structure: Any, small: Mapping[str, Tensor], batches: Batches, steps: int, lr: float
) -> tuple[float, float]:
    """Cross-entropy and accuracy on the batches after the first `steps`, once trained on those.

    `small`: the tensors of `structure`; the gradient at the trained weights is passed back through them (first-order
    MAML, Finn et al. 2017), which with `steps=0` is the plain gradient.
    """
    names = [n for n, t in small.items() if t.requires_grad]
    tuned = {n: small[n].detach().clone().requires_grad_() for n in names}
    sgd = torch.optim.SGD(tuned.values(), lr=lr, momentum=0.9)
    used = _with_own_statistics(network, small) | tuned
    total, right, seen = 0.0, 0, 0
    for number, (inputs, labels) in enumerate(batches):
        if number <= steps:
            sgd.zero_grad()
        args, kwargs = call_arguments(channels_last(inputs))
        logits = logits_of(network.program.run(structure, used, args, kwargs))
        loss = cross_entropy(logits, labels)
        if number < steps:
            loss.backward()
            sgd.step()
            continue
        (loss / (len(batches) - steps)).backward()
        total += loss.item()
        right, seen = right + int((logits.argmax(dim=-1) == labels).sum()), seen + len(labels)
    reached = [n for n in names if tuned[n].grad is not None]
    torch.autograd.backward([small[n] for n in reached], [tuned[n].grad for n in reached])
    return total / (len(batches) - steps), right / seen


def gated_loss(
    network: Network, gated: Gated, tensors: Mapping[str, Tensor], gates: Sequence[Tensor], batches: Batches
) -> tuple[float, float]:
    """Cross-entropy and accuracy of the full-size network under `gates`; gradients go to them and to `tensors`."""
    used = _with_own_statistics(network, tensors)
    leaves = [g.detach().requires_grad_() for g in gates]
    total, right, seen = 0.0, 0, 0
    for inputs, labels in batches:
        args, kwargs = call_arguments(channels_last(inputs))
        logits = logits_of(gated.run(used, leaves, args, kwargs, training=True))
        loss = cross_entropy(logits, labels) / len(batches)
        loss.backward()
        total += loss.item()
        right, seen = right + int((logits.argmax(dim=-1) == labels).sum()), seen + len(labels)
    reached = [k for k, gate in enumerate(gates) if gate.requires_grad and leaves[k].grad is not None]
    torch.autograd.backward([gates[k] for k in reached], [leaves[k].grad for k in reached])
    return total, right / seen


def _with_own_statistics(network: Network, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Training mode writes running statistics: into copies."""
    found = dict(tensors)
    return found | {n: t.clone() for n, t in found.items() if not isinstance(network.tensors[n], nn.Parameter)}
