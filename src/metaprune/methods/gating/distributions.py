"""Distributions of one gate per channel (or pair): what the mask generator emits, what training draws, what it pays."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

EULER = 0.5772156649015329


def concrete(logits: Tensor, temperature: float) -> Tensor:
    """Draw relaxed Bernoulli values in (0, 1), differentiable: sigmoid((logits + logit(u)) / temperature), u uniform.

    Concrete distribution, Maddison et al. 2017. Draws from torch's global generator.
    """
    noise = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
    return torch.sigmoid((logits + noise.log() - (-noise).log1p()) / temperature)


def kumaraswamy_kl(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """KL(Kumaraswamy(a, b) || Beta(alpha, 1)) of every channel; `alpha` is the prior's alpha / channels.

    (1 - alpha/a)(-gamma - psi(b) - 1/b) + ln(ab/alpha) - (b-1)/b; Lee et al., Adaptive network sparsification with
    dependent variational Beta-Bernoulli dropout, 2018.
    """
    return (1 - alpha / a) * (-EULER - torch.digamma(b) - 1 / b) + (a * b / alpha).log() - (b - 1) / b


def kumaraswamy_mean(a: Tensor, b: Tensor) -> Tensor:
    """E[pi] = b Gamma(1 + 1/a) Gamma(b) / Gamma(1 + 1/a + b)."""
    return torch.exp(b.log() + torch.lgamma(1 + 1 / a) + torch.lgamma(b) - torch.lgamma(1 + 1 / a + b))


class Bernoulli:
    """Independent keep probabilities sigmoid(logits)."""

    def __init__(self, raw: Sequence[Tensor]):
        self._logits = [r[..., 0] for r in raw]

    @staticmethod
    def start(keep: float) -> list[float]:
        """Raw outputs at which every channel is kept with probability `keep`."""
        return [math.log(keep / (1 - keep))]

    def probabilities(self) -> list[Tensor]:
        return [torch.sigmoid(x) for x in self._logits]

    def draw(self, temperature: float) -> list[Tensor]:
        return [concrete(x, temperature) for x in self._logits]

    def kl(self) -> Tensor:
        return torch.zeros(())


class BetaBernoulli:
    """pi ~ Kumaraswamy(a, b), gate ~ Bernoulli(pi), with a sparse prior Beta(alpha, 1) on pi."""

    alpha = 1e-4

    def __init__(self, raw: Sequence[Tensor]):
        self._a = [functional.softplus(r[..., 0]) + 1e-3 for r in raw]
        self._b = [functional.softplus(r[..., 1]) + 1e-3 for r in raw]

    @staticmethod
    def start(keep: float) -> list[float]:
        a = keep / (1 - keep)  # with b = 1 the mean is a / (1 + a)
        return [math.log(math.expm1(a)), math.log(math.expm1(1.0))]

    def probabilities(self) -> list[Tensor]:
        return [kumaraswamy_mean(a, b) for a, b in zip(self._a, self._b, strict=True)]

    def draw(self, temperature: float) -> list[Tensor]:
        drawn = []
        for a, b in zip(self._a, self._b, strict=True):
            u = torch.rand_like(a).clamp(1e-6, 1 - 1e-6)
            pi = (1 - u.pow(1 / b)).clamp(1e-6, 1 - 1e-6).pow(1 / a).clamp(1e-6, 1 - 1e-6)
            drawn.append(concrete(pi.log() - (-pi).log1p(), temperature))
        return drawn

    def kl(self) -> Tensor:
        """Mean over all channels."""
        parts = [kumaraswamy_kl(a, b, self.alpha) for a, b in zip(self._a, self._b, strict=True)]
        return torch.cat(parts).mean()


class Vib:
    """Scales N(mu, sigma^2) under an improper log-uniform prior; a channel is noise where sigma^2 is above mu^2."""

    def __init__(self, raw: Sequence[Tensor]):
        self._mean, self._log_variance = [r[..., 0] for r in raw], [r[..., 1] for r in raw]

    @staticmethod
    def start(keep: float) -> list[float]:
        return [1.0, -math.log(keep / (1 - keep))]

    def _log_ratio(self) -> list[Tensor]:
        """ln mu^2 - ln sigma^2."""
        return [(m.square() + 1e-8).log() - v for m, v in zip(self._mean, self._log_variance, strict=True)]

    def probabilities(self) -> list[Tensor]:
        return [torch.sigmoid(x) for x in self._log_ratio()]

    def draw(self, temperature: float) -> list[Tensor]:
        pairs = zip(self._mean, self._log_variance, strict=True)
        return [m + torch.randn_like(m) * (v / 2).exp() for m, v in pairs]

    def kl(self) -> Tensor:
        """Mean over all channels of ln(1 + mu^2 / sigma^2) / 2."""
        return functional.softplus(torch.cat(self._log_ratio())).mean() / 2


PRIORS = {"none": Bernoulli, "beta_bernoulli": BetaBernoulli}
GATES = {"concrete": Bernoulli, "vib": Vib, "beta_bernoulli": BetaBernoulli}
