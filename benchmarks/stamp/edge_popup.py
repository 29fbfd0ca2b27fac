"""Edge-popup: find a subnetwork in random weights that are never trained (Ramanujan et al., CVPR 2020).

A score per weight; the layer's top share is used, the gradient goes straight through. Signed-constant weights, SGD of
the scores with a cosine, as in the authors' settings; BatchNorm stays as it starts. Single weights are dropped, not
channels: dense libraries gain no speed from it, so that it is a baseline here and no method.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from metaprune.core.rng import Rng
from metaprune.train.loop import train


class Subnet(nn.Module):
    """The network with its products' weights fixed at random and masked by scores."""

    def __init__(self, model: nn.Module, share: float):
        super().__init__()
        self.model, self.share = model, share
        self.scores = nn.ParameterDict()
        for name, weight in model.named_parameters():
            weight.requires_grad_(False)
            if weight.dim() > 1:
                bound = math.sqrt(2 / (weight[0].numel() * share))
                weight.copy_(torch.randn_like(weight).sign() * bound)
                self.scores[name.replace(".", "/")] = nn.Parameter(nn.init.kaiming_uniform_(torch.empty_like(weight)))
            else:
                nn.init.constant_(weight, float(name.endswith("weight")))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()

    def forward(self, x: Tensor) -> Tensor:
        weights = {name.replace("/", "."): score for name, score in self.scores.items()}
        chosen = {n: self.model.get_parameter(n) * _TopShare.apply(s.abs(), self.share) for n, s in weights.items()}
        return torch.func.functional_call(self.model, chosen, (x,))


class _TopShare(torch.autograd.Function):
    """1 for the highest share of the scores, else 0; the gradient passes as it is."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, share: float) -> Tensor:  # type: ignore[override]
        kept = max(1, round(share * scores.numel()))
        mask = torch.zeros_like(scores)
        mask.view(-1)[scores.flatten().topk(kept).indices] = 1.0
        return mask

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return gradient, None


def edge_popup(model: nn.Module, data: Any, share: float, config: Any, rng: Rng) -> Subnet:
    """Scores of a subnetwork of `share` of the weights, trained on `data` like any network."""
    with rng.child("init").torch_global(), torch.no_grad():
        subnet = Subnet(model, share)
    train(subnet, data, config, rng=rng.child("train"), progress=False)
    return subnet
