"""Set encoder and mask generator: a data set in, a keep probability of every gate out.

Song et al., Rapid Structural Pruning of Neural Networks with Set-based Task-Adaptive Meta-Pruning, 2020. No text beyond
the abstract could be read: the abstract fixes that the mask is a function of the target set; the form is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from metaprune.methods.gating.distributions import PRIORS, Bernoulli, BetaBernoulli
from metaprune.methods.stamp.config import Encoder, Prior
from metaprune.methods.stamp.reader import SetView

BANK_SETS, BANK_SAMPLES = 16, 32


def standardised(x: Tensor, bank: Tensor) -> Tensor:
    """x [width] by mean and spread of the bank's sets [sets, width]; at most 5 in size.

    What data sets have in common is much larger than what tells them apart: unless it is taken out, every data set gets
    the same mask (our prototype, and our first version, collapsed so). The gradient goes through the bank's mean too:
    an encoder cannot bring back a common part that running statistics would follow too late.
    """
    mean, spread = bank.mean(dim=0), bank.std(dim=0)
    return ((x - mean) / (spread + 1e-3 * mean.abs() + 1e-8)).clamp(-5, 5)


class SetEncoder(nn.Module):
    """Features of a sample of a data set [B, F] -> embedding of the set [dim]; their order does not matter.

    attention: samples attend to one another, then the mean. mean: of the samples. classes: the same twice, within every
    class and across classes. The attention layer is PyTorch's, pre-norm.
    """

    def __init__(self, features: int, dim: int, heads: int, kind: Encoder):
        super().__init__()
        self.kind = kind
        self.enter = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, dim))
        layers = {"attention": 1, "mean": 0, "classes": 2}[kind]
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, heads, 2 * dim, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(layers)
        )

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """features: [..., B, F], labels: [..., B] -> [..., dim]."""
        x = self.enter(features)
        if self.kind == "mean":
            return x.mean(dim=-2)
        if self.kind == "attention":
            return self.layers[0](x.reshape(-1, *x.shape[-2:])).mean(dim=-2).reshape(*x.shape[:-2], -1)
        if x.dim() > 2:
            return torch.stack([self._by_class(a, b) for a, b in zip(x, labels, strict=True)])
        return self._by_class(x, labels)

    def _by_class(self, x: Tensor, labels: Tensor) -> Tensor:
        classes = [self.layers[0](x[labels == c][None])[0].mean(dim=0) for c in torch.unique(labels)]
        return self.layers[1](torch.stack(classes)[None])[0].mean(dim=0)


class Part(NamedTuple):
    """A set of gates with a network of its own: how many, how many values the network emits, which groups it sees."""

    gates: int
    values: int
    groups: tuple[int, ...]


class MaskGenerator(nn.Module):
    """The set encoder and, per channel group, a two-layer network from [pooled activations; set embedding].

    Args:
        widths: channels of every group. tapped: groups whose activations are read.
        use_set, use_activations: what it sees; with neither the gates are learned but the same for all data.
        shares: least and most share of the full cost that it is asked for; one share for all is no input.
        keep: probability that every gate starts with.
        parts: sets of gates other than the groups; a subclass then brings `gates_from`.
    """

    def __init__(
        self,
        widths: Sequence[int],
        tapped: set[int],
        features: int,
        *,
        dim: int,
        heads: int,
        hidden: int,
        encoder: Encoder,
        prior: Prior,
        use_set: bool,
        use_activations: bool,
        keep: float,
        shares: tuple[float, float],
        parts: Sequence[Part] | None = None,
    ):
        super().__init__()
        self.shares = shares
        parts = [Part(width, width, (g,)) for g, width in enumerate(widths)] if parts is None else parts
        self.prior: type[Bernoulli] | type[BetaBernoulli] = PRIORS[prior]
        self.encoder = SetEncoder(features, dim, heads, encoder) if use_set else None
        self.register_buffer("bank_features", torch.zeros(BANK_SETS, BANK_SAMPLES, features))
        self.register_buffer("bank_labels", torch.zeros(BANK_SETS, BANK_SAMPLES, dtype=torch.int64))
        self.read = [g for g in range(len(widths)) if use_activations and g in tapped]
        for g in self.read:
            self.register_buffer(f"bank_pooled{g}", torch.zeros(BANK_SETS, widths[g]))
        self.sees = [[g for g in part.groups if g in self.read] for part in parts]
        self.active: Sequence[int] = range(len(parts))  # those whose gates are asked for
        self.bodies, self.biases, self.slopes = nn.ModuleDict(), nn.ParameterList(), nn.ParameterList()
        start = torch.tensor(self.prior.start(keep))
        for number, (part, seen) in enumerate(zip(parts, self.sees, strict=True)):
            inputs, outputs = sum(widths[g] for g in seen) + (dim if use_set else 0), part.values * len(start)
            if inputs:
                # no biases inside: of inputs with mean zero an odd function has mean zero, so that what all data sets
                # have in common (the pressure to drop) moves `biases` and cannot saturate what tells them apart
                first, last = nn.Linear(inputs, hidden, bias=False), nn.Linear(hidden, outputs, bias=False)
                nn.init.normal_(last.weight, std=0.1 / hidden**0.5)  # no chance mask that a saturated gate would keep
                self.bodies[str(number)] = nn.Sequential(first, nn.Tanh(), last)
            self.biases.append(nn.Parameter(start.repeat(part.gates, 1)))
            if shares[0] < shares[1]:
                # not through the body: set embeddings saturate its units, and one more input would not be heard
                self.slopes.append(nn.Parameter(torch.zeros(part.gates, len(start))))

    def remember(self, views: Sequence[SetView], labels: Sequence[Tensor]) -> None:
        """Fill the bank: BANK_SETS reference sets of BANK_SAMPLES samples, by which all sets are standardised."""
        self.bank_features = torch.stack([v.features for v in views])
        self.bank_labels = torch.stack(list(labels))
        for g in self.read:
            setattr(self, f"bank_pooled{g}", torch.stack([v.pooled[g].log1p() for v in views]))  # type: ignore[union-attr]

    def forward(self, view: SetView, labels: Tensor, share: float) -> Bernoulli | BetaBernoulli:
        """Gates of a set, for a mask that keeps about `share` of the full cost."""
        embedding, asked = [], self._asked(share)
        if self.encoder is not None:
            bank = self.encoder(self.bank_features, self.bank_labels)
            embedding = [standardised(self.encoder(view.features, labels), bank)]
        pooled = {
            g: standardised(x.log1p(), getattr(self, f"bank_pooled{g}"))
            for g in self.read
            if (x := view.pooled[g]) is not None
        }
        raw = []
        for number in self.active:
            bias, seen = self.biases[number], [*(pooled[g] for g in self.sees[number] if g in pooled), *embedding]
            group_bias = bias + asked * self.slopes[number] if self.slopes else bias * 1.0
            raw.append(
                group_bias + self.gates_from(number, self.bodies[str(number)](torch.cat(seen))) if seen else group_bias
            )
        return self.prior(raw)

    def gates_from(self, number: int, values: Tensor) -> Tensor:
        """Shape what the network of a part emitted into raw gates [gates, parameters of a gate]."""
        return values.reshape(self.biases[number].shape)

    def _asked(self, share: float) -> float:
        """The share as the slopes take it: its logarithm, from -1 to 1 over what training asked for, no further."""
        low, high = (math.log(s) for s in self.shares)
        position = (2 * math.log(max(share, 1e-9)) - low - high) / (high - low) if low < high else 0.0
        return min(1.0, max(-1.0, position))
