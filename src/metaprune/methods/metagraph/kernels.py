"""Where the weights of one pair of channels lie among an edge's features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metaprune.methods.metagraph.network_graph import MAX_FEATURES

KERNEL = 7  # kernels up to 7 x 7 share a grid, by their centres; what else has several values per pair is listed after
SLOTS = KERNEL * KERNEL + MAX_FEATURES


def folded(into: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """RunInputs that come from one node several times (a flattened feature map) are further features of one edge."""
    if len(into) != 1:
        return into, p
    nodes, inverse, counts = torch.unique(into[0], return_inverse=True, return_counts=True)
    if len(nodes) == len(into[0]) or (counts != counts[0]).any():
        return into, p
    order = torch.argsort(inverse, stable=True)
    p = p[:, :, order].reshape(1, p.shape[1], len(nodes), -1)
    return nodes[None], p


def taps_of(kernel: Sequence[int], features: int) -> Tensor:
    """Locate features: kernels by their centre in a KERNEL x KERNEL grid, anything else in a row after it."""
    sizes = [1] * (2 - len(kernel)) + list(kernel)
    if features > 1 and (not kernel or len(sizes) > 2 or max(sizes) > KERNEL):
        return KERNEL * KERNEL + torch.arange(features)
    rows, columns = ((KERNEL - k) // 2 + torch.arange(k) for k in sizes)
    return (rows[:, None] * KERNEL + columns[None, :]).reshape(-1)
