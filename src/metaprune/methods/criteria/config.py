"""Options of the criteria, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from metaprune.core.errors import ConfigError
from metaprune.protocol.options import MethodOptions
from metaprune.search.config import Scope
from metaprune.train.config import require_choice, require_number

Normalise = Literal["mean", "none"]
Allocate = Literal["criterion", "uniform", "sensitivity"]


@dataclass(frozen=True, kw_only=True)
class UniformConfig(MethodOptions):
    """Uniform width: the same keep ratio in every group, the control that every paper shows."""

    name: ClassVar[str] = "uniform"

    channels: Literal["magnitude", "first"] = "magnitude"
    """Which channels stay in a group: those of largest L1 norm, or the first ones (as slimmable networks)."""
    fill: bool = False
    """Hand what is left over of the budget to single groups, which then keep more than others of their width."""
    tilt: float = 0.0
    """Above 0, later groups keep more and earlier ones less: r ** 2 ** (tilt * (1 - 2 * depth)) of a group at depth 0
    (the first) to 1 (the last)."""
    last_whole: bool = False
    """Keep what the last layer reads whole while the other groups can give way (a classifier of many classes needs
    it)."""

    def __post_init__(self) -> None:
        if self.channels not in ("magnitude", "first"):
            raise ConfigError(f"channels is magnitude or first, not {self.channels!r}")
        require_number("uniform.tilt", self.tilt, -4, 4)
        if not isinstance(self.last_whole, bool):
            raise ConfigError(f"last_whole is true or false, not {self.last_whole!r}")
        if not isinstance(self.fill, bool):
            raise ConfigError(f"fill is true or false, not {self.fill!r}")


@dataclass(frozen=True, kw_only=True)
class RandomConfig(MethodOptions):
    """Random channels: the control that learned methods have to beat."""

    name: ClassVar[str] = "random"

    widths: Literal["random", "uniform"] = "random"
    """random: draws how fast each group shrinks (keep ratio r ** e with log2 e uniform in [-1, 1]); uniform: gives
    every group the same ratio."""

    def __post_init__(self) -> None:
        if self.widths not in ("random", "uniform"):
            raise ConfigError(f"widths is random or uniform, not {self.widths!r}")


@dataclass(frozen=True, kw_only=True)
class RankingConfig(MethodOptions):
    """Channels are scored, and the lowest dropped."""

    scope: Scope = "global"
    """global: all channels in one ranking; local: the same share of every group; isomorphic: the same share of every
    class of equal structure."""
    allocate: Allocate = "criterion"
    """criterion: widths follow from the ranking; uniform: every group keeps the same share; sensitivity: widths of
    least total change of the outputs, measured for every group alone on training samples (scope has no effect)."""
    steps: int = 1
    """1 is one-shot; with n steps the cost falls linearly to the budget and scores are taken anew each time."""
    normalise: Normalise = "mean"
    """mean: each group's scores are divided by their mean before ranking; none: they are ranked as they are."""

    def __post_init__(self) -> None:
        if self.scope not in ("global", "local", "isomorphic"):
            raise ConfigError(f"scope is global, local or isomorphic, not {self.scope!r}")
        require_choice("allocate", self.allocate, get_args(Allocate))
        if self.normalise not in ("mean", "none"):
            raise ConfigError(f"normalise is mean or none, not {self.normalise!r}")
        if self.steps < 1:
            raise ConfigError(f"steps is at least 1, not {self.steps}")


@dataclass(frozen=True, kw_only=True)
class MagnitudeConfig(RankingConfig):
    """Magnitude: the norm of everything a channel owns."""

    name: ClassVar[str] = "magnitude"

    p: int = 2
    """1 for L1, 2 for L2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.p not in (1, 2):
            raise ConfigError(f"p is 1 (L1) or 2 (L2), not {self.p}")


@dataclass(frozen=True, kw_only=True)
class BNScaleConfig(RankingConfig):
    """BatchNorm scale: |gamma| as the channel's importance."""

    name: ClassVar[str] = "bn_scale"

    normalise: Normalise = "none"
    """mean: each group's scores are divided by their mean before ranking; none: they are ranked as they are."""


@dataclass(frozen=True, kw_only=True)
class LampConfig(RankingConfig):
    """LAMP: layer-adaptive magnitude, a channel's squared norm beside those of its group that are no smaller."""

    name: ClassVar[str] = "lamp"

    normalise: Normalise = "none"
    """mean: each group's scores are divided by their mean before ranking; none: they are ranked as they are."""


@dataclass(frozen=True, kw_only=True)
class FPGMConfig(RankingConfig):
    """FPGM: filters near the geometric median of their layer are redundant."""

    name: ClassVar[str] = "fpgm"


@dataclass(frozen=True, kw_only=True)
class TaylorConfig(RankingConfig):
    """First-order Taylor, per sample: how much every sample's loss changes when a channel goes."""

    name: ClassVar[str] = "taylor"
    needs_data: ClassVar[bool] = True

    batches: int = 10
    """Training mini-batches that the gradient is taken on, in eval mode (running BatchNorm statistics)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batches < 1:
            raise ConfigError(f"batches is at least 1, not {self.batches}")


@dataclass(frozen=True, kw_only=True)
class TaylorBatchConfig(TaylorConfig):
    """First-order Taylor, per batch: how much the mean loss of a mini-batch changes when a channel's weights go."""

    name: ClassVar[str] = "taylor_batch"


@dataclass(frozen=True, kw_only=True)
class SnipConfig(TaylorBatchConfig):
    """SNIP by channel: how sensitive the loss is to every connection, summed over a channel."""

    name: ClassVar[str] = "snip"

    batches: int = 1
    """Training mini-batches that the gradient is taken on, in eval mode (running BatchNorm statistics)."""


@dataclass(frozen=True, kw_only=True)
class CalibratedConfig(RankingConfig):
    """Options of the criteria that read activations, without labels."""

    needs_data: ClassVar[bool] = True

    samples: int = 512
    """Training samples whose activations are recorded."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 4:
            raise ConfigError(f"samples is at least 4, not {self.samples}")


@dataclass(frozen=True, kw_only=True)
class ActivationConfig(CalibratedConfig):
    """Activation: the norm of what a channel gives times the norm of the weights that read it."""

    name: ClassVar[str] = "activation"

    p: int = 2
    """Norm of the weights: 2 for the energy of what is read, 1 for Wanda by structure."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.p not in (1, 2):
            raise ConfigError(f"p is 1 (L1) or 2 (L2), not {self.p}")


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig(ActivationConfig):
    """Experts: the mean norm of what an expert adds, over the tokens that are routed to it; other channels as
    `activation`."""

    name: ClassVar[str] = "experts"


@dataclass(frozen=True, kw_only=True)
class VarianceConfig(CalibratedConfig):
    """Variance: how far a channel strays from its mean, times the energy of the weights that read it."""

    name: ClassVar[str] = "variance"


@dataclass(frozen=True, kw_only=True)
class OBSConfig(CalibratedConfig):
    """OBS by channel: what its readers lose when a channel goes and the others are solved anew, one at a time."""

    name: ClassVar[str] = "obs"
