"""Weighted shrinkage of channel groups: what makes a network easy to prune, as one differentiable number.

For group channel k with coupled slices w (biases left out): I_k = mean over slices of ||w||^2, divided by the group's
largest; s_k = sqrt(I_k); gamma_k = alpha ^ ((s_max - s_k) / (s_max - s_min)), so 1 for the strongest channel and alpha
for the weakest. The loss is 1/2 sum_k gamma_k sum_w ||w||^2 with gamma held constant: its gradient gamma_k w is that of
Torch-Pruning's GroupNormPruner.regularize (DepGraph, Fang et al., CVPR 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from metaprune.network import Network
from metaprune.values import Plan


class Shrinkage:
    """Squared norms of all channels of a network's groups, and the weighted sum of them."""

    def __init__(self, network: Network, alpha: float = 16.0):
        self.alpha = alpha
        self._space = network.space
        self._members = [
            [
                (m.parameter, m.dim, torch.from_numpy(np.ascontiguousarray(m.rows)))
                for m in group.members
                if isinstance(network.tensors[m.parameter], nn.Parameter) and not m.parameter.endswith("bias")
            ]
            for group in network.space
        ]

    def squares(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """[members, width] per group: ||w||^2 of every coupled slice."""
        return self._sums(tensors, torch.square)

    def _sums(self, tensors: Mapping[str, Tensor], of: Callable[[Tensor], Tensor]) -> list[Tensor]:
        sums: dict[tuple[str, int], Tensor] = {}
        groups = []
        for group, members in zip(self._space, self._members, strict=True):
            rows = []
            for name, dim, index in members:
                if (name, dim) not in sums:
                    others = [d for d in range(tensors[name].dim()) if d != dim]
                    values = of(tensors[name])
                    sums[name, dim] = values.sum(others) if others else values
                rows.append(sums[name, dim][index.to(tensors[name].device)].sum(1))
            none = torch.zeros(1, group.width, device=next(iter(tensors.values())).device)  # no trained weights
            groups.append(torch.stack(rows) if rows else none)
        return groups

    @torch.no_grad()
    def weights(self, tensors: Mapping[str, Tensor], plan: Plan | None = None) -> list[Tensor]:
        """gamma [width] per group, of the channels that `plan` keeps; 0 for the others."""
        gammas = []
        for squares, mask in zip(self.squares(tensors), (plan or Plan()).masks(self._space), strict=True):
            alive = torch.from_numpy(mask).to(squares.device)
            size = squares.mean(0).sqrt()
            high, low = size[alive].max(), size[alive].min()
            gamma = self.alpha ** ((high - size) / (high - low).clamp_min(1e-12))  # equal norms: 1 for all, not 0 / 0
            gammas.append(torch.where(alive, gamma, torch.zeros_like(gamma)))
        return gammas

    def loss(self, tensors: Mapping[str, Tensor], weights: Sequence[Tensor]) -> Tensor:
        """Compute 1/2 sum of gamma ||w||^2."""
        parts = [(g * s.sum(0)).sum() for g, s in zip(weights, self.squares(tensors), strict=True)]
        return torch.stack(parts).sum() / 2

    def gates(self, tensors: Mapping[str, Tensor], plan: Plan, temperature: float = 0.1) -> list[Tensor]:
        """[width] per group: 1 where `plan` keeps a channel and 0 where not, with the gradient of a soft mask.

        The soft mask is sigmoid((s - t) / temperature), s the mean L1 norm of a channel's slices relative to its
        group's mean, t halfway between the weakest kept and the strongest dropped channel (straight-through: Bengio et
        al., arXiv 1308.3432, 2013). So a loss tells a dropped channel, too, whether it had better been kept.
        """
        gates = []
        for sums, mask in zip(self._sums(tensors, torch.abs), plan.masks(self._space), strict=True):
            mask_tensor = torch.from_numpy(mask).to(sums.device)
            score = sums.mean(0)
            score = score / score.mean().clamp_min(1e-12)
            with torch.no_grad():
                dropped = score[~mask_tensor].max() if not mask_tensor.all() else score.min()
                threshold = (score[mask_tensor].min() + dropped) / 2
            soft = torch.sigmoid((score - threshold) / temperature)
            gates.append(mask_tensor.to(soft) + soft - soft.detach())
        return gates
