"""Options of STAMP, without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from metaprune.core.errors import ConfigError
from metaprune.cost.metrics import budget_metrics
from metaprune.protocol.options import BY_FIT, MethodOptions
from metaprune.train.config import require_choice, require_number

if TYPE_CHECKING:
    from metaprune.core.rng import Rng

Encoder = Literal["attention", "mean", "classes"]
Freeze = Literal["budget", "threshold"]
Mask = Literal["auto", "generator", "statistics"]
Outer = Literal["reptile", "fomaml"]
Precision = Literal["no", "bf16"]
Prior = Literal["none", "beta_bernoulli"]
Start = Literal["zero", "kept"]
Variant = Literal["weights", "structure", "filter"]
LOOKS = ("as it is", "grey", "inverted", "grey and inverted")


HEAD_LR = 0.3
"""Learning rate (SGD) of the head, which starts at zero and has few steps."""


@dataclass(frozen=True, kw_only=True)
class MetaConfig:
    """Meta-training. Not read in the paper: the steps are Reptile's (Nichol et al. 2018), the figures are ours."""

    episodes: int = 300
    """Episodes: a random data set, random classes of it, a new head."""
    ways: tuple[int, int] = (5, 20)
    """Least and most classes of an episode."""
    inner_steps: int = 8
    """Gradient steps of an episode."""
    batch_size: int = 64
    """Samples of a step; the set that the mask is generated from is the same batch."""
    lr: float = 0.05
    """Learning rate of the weights (SGD)."""
    generator_lr: float = 3e-3
    """Learning rate of the mask generator (Adam)."""
    head: Start = "kept"
    """kept: an episode takes up the head rows of its classes where the last one left them; zero: a new head in each."""
    outer: Outer = "reptile"
    """reptile: the weights move towards those at the end of an episode; fomaml: against the gradient taken there."""
    outer_lr: float = 1.0
    """Step of the weights towards an episode's; falls to zero along a line."""
    ramp: float = 0.25
    """Share of the episodes in which the strength of the cost rises from zero."""
    looks: bool = True
    """Show a reference data set also in grey, inverted, or both, one look an episode: with two data sets alone the
    generator learns two masks, one for each."""
    save_every: int = 25
    """Episodes between checkpoints."""
    augment: bool = True
    """Augment the samples as the data source defines it, also those that masks are read from: the generator would take
    whole images for another data set than shifted ones."""

    mixed_precision: Precision = "no"
    """bf16: the network under gates runs in bfloat16, in meta-training and in adaptation; sets are read and gates are
    made in float32."""

    def __post_init__(self) -> None:
        for name, known in (("outer", Outer), ("head", Start), ("mixed_precision", Precision)):
            require_choice(f"stamp.meta.{name}", getattr(self, name), get_args(known))
        for name, low in (("episodes", 1), ("inner_steps", 1), ("batch_size", 2), ("save_every", 1), ("ramp", 0)):
            require_number(f"stamp.meta.{name}", getattr(self, name), low)
        for name in ("lr", "generator_lr", "outer_lr"):
            require_number(f"stamp.meta.{name}", getattr(self, name), 0.0, open_low=True)
        if len(self.ways) != 2 or not 2 <= self.ways[0] <= self.ways[1]:
            raise ConfigError(f"stamp.meta.ways={list(self.ways)}: give least and most classes, at least 2")

    def look(self, rng: Rng) -> str:
        """Draw the look of one episode: half of them show the data as they are."""
        draw = rng.child("look").numpy()
        return LOOKS[int(draw.integers(1, len(LOOKS)))] if self.looks and draw.random() < 0.5 else LOOKS[0]


@dataclass(frozen=True, kw_only=True)
class StampConfig(MethodOptions):
    """STAMP: a generator reads a data set and emits its mask on a network that was meta-trained for it."""

    name: ClassVar[str] = "stamp"
    needs_data: ClassVar[bool] = True
    needs_classes: ClassVar[bool] = True
    shares_work: ClassVar[bool] = True

    meta: MetaConfig = field(default_factory=MetaConfig, metadata=BY_FIT)
    """Meta-training."""
    references: tuple[str, ...] = field(default=(), metadata=BY_FIT)
    """More reference data sets, as data specs; made to fit the shape of the first."""
    metric: str = field(default="params", metadata=BY_FIT)
    """Cost that the gates pay for; of variant = "filter" nonzero, which the default then is."""
    strength: float = field(default=2.0, metadata=BY_FIT)
    """Weight of the price of an expected cost off the share that is asked for, beside the cross-entropy."""
    shares: tuple[float, float] = field(default=(0.06, 0.5), metadata=BY_FIT)
    """Least and most share of the full cost that episodes ask for; the generator is told. Adaptation asks for its
    budget's."""
    logit_decay: float = field(default=0.01, metadata=BY_FIT)
    """Weight of the mean squared logit of the keep probabilities: saturated gates follow nothing any more."""
    kl_weight: float = field(default=0.0, metadata=BY_FIT)
    """Weight of the KL to the sparse prior, mean over channels; needs prior = "beta_bernoulli"."""
    prior: Prior = field(default="none", metadata=BY_FIT)
    """none: independent keep probabilities; beta_bernoulli: with a distribution and a sparse prior over them."""
    temperature: float = field(default=0.5, metadata=BY_FIT)
    """Of the relaxed gates in training."""
    encoder: Encoder = field(default="attention", metadata=BY_FIT)
    """How a set is read: attention over its samples, their mean, or by class and then across classes."""
    set_dim: int = field(default=32, metadata=BY_FIT)
    """Width of a set's embedding."""
    heads: int = field(default=4, metadata=BY_FIT)
    """Attention heads of the set encoder."""
    hidden: int = field(default=32, metadata=BY_FIT)
    """Hidden units of every group's (every layer's) generator."""
    keep: float = field(default=0.95, metadata=BY_FIT)
    """Probability to be kept that gates start with."""
    use_set: bool = field(default=True, metadata=BY_FIT)
    """Let the generator see the set's embedding."""
    use_activations: bool = field(default=True, metadata=BY_FIT)
    """Let the generator see the set's pooled activations."""
    headroom: bool = field(default=True, metadata=BY_FIT)
    """Measure before meta-training whether masks of a domain's own gain anything, where there are several domains."""
    adapt_steps: int = 20
    """Gradient steps on the target before the mask is frozen."""
    mask: Mask = "auto"
    """generator: what was learned decides; statistics: per-sample Taylor on the target, weights by least squares, head
    by ridge regression, no gradient step and no meta-training; auto: statistics where adapt_steps = 0."""
    blend: float = 0.5
    """Share of the meta-trained weights, beside the pretrained ones', in those that adaptation starts from."""
    sets: int = 4
    """Samples of the target that the frozen mask is the mean of."""
    freeze: Freeze = "budget"
    """budget: what is most probable and fits; threshold: all above 0.5, which has to be within the budget."""
    variant: Variant = "weights"
    """Gates per channel, and weights: hand over the adapted weights; structure: only what is kept (for recover =
    "scratch"). filter: a gate per pair of an output and an input of a layer; pairs are held at zero within a `nonzero`
    budget, which brings no dense speed-up. An artifact is fitted for channels or for pairs."""
    artifact: str | None = None
    """Folder of `metaprune fit stamp`; None: meta-train on this task's own data first."""

    def __post_init__(self) -> None:
        require_choice("stamp.metric", self.metric, budget_metrics())
        require_choice("stamp.prior", self.prior, ("none", "beta_bernoulli"))
        require_choice("stamp.encoder", self.encoder, ("attention", "mean", "classes"))
        require_choice("stamp.freeze", self.freeze, ("budget", "threshold"))
        require_choice("stamp.mask", self.mask, get_args(Mask))
        require_choice("stamp.variant", self.variant, ("weights", "structure", "filter"))
        if self.variant == "filter":
            if self.metric not in ("params", "nonzero"):
                raise ConfigError(
                    f"stamp.metric={self.metric!r} is a dense cost, which zeros do not change: with variant='filter' "
                    "leave metric out when you fit, it is then 'nonzero'"
                )
            object.__setattr__(self, "metric", "nonzero")  # of full widths, params without what is zero
        require_number("stamp.strength", self.strength, 0.0)
        require_number("stamp.logit_decay", self.logit_decay, 0.0)
        if len(self.shares) != 2 or not 0 < self.shares[0] <= self.shares[1] <= 1:
            raise ConfigError(f"stamp.shares={list(self.shares)}: give least and most, in (0, 1]")
        require_number("stamp.keep", self.keep, 0.01, 0.99)
        require_number("stamp.blend", self.blend, 0.0, 1.0)
        require_number("stamp.temperature", self.temperature, 0.0, open_low=True)
        for name, low in (("set_dim", 1), ("heads", 1), ("hidden", 1), ("adapt_steps", 0), ("sets", 1)):
            require_number(f"stamp.{name}", getattr(self, name), low)
        if self.use_set and self.set_dim % self.heads:
            raise ConfigError(
                f"stamp.set_dim={self.set_dim} does not divide by stamp.heads={self.heads}: choose a multiple"
            )
        if self.mask == "statistics" and self.variant == "filter":
            raise ConfigError("stamp.mask='statistics' chooses channels: with variant='filter' leave it out")
        if self.reads_statistics and self.freeze == "threshold":
            raise ConfigError(
                "stamp.freeze='threshold' is of the generator's probabilities, and channels are chosen by statistics "
                "here: set stamp.mask='generator', or leave freeze out"
            )
        require_number("stamp.kl_weight", self.kl_weight, 0.0)
        if self.kl_weight and self.prior == "none":
            raise ConfigError("kl_weight needs prior='beta_bernoulli': plain keep probabilities have no prior")

    @property
    def reads_statistics(self) -> bool:
        """Whether channels are chosen by statistics of the target, without what was learned."""
        chosen = "statistics" if self.mask == "auto" and not self.adapt_steps else self.mask
        return chosen == "statistics" and self.variant != "filter"
