"""Options of the graph metanetwork, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, get_args

from metaprune.core.errors import ConfigError
from metaprune.methods.criteria.config import Allocate, RankingConfig
from metaprune.methods.weight_masks.config import parse_pattern
from metaprune.protocol.options import BY_FIT, MethodOptions
from metaprune.protocol.registry import method_spec, resolved_options
from metaprune.train.config import TrainConfig, require_choice, require_number

Form = Literal["gated", "paper"]
Objective = Literal["cut", "straight-through", "sparsity"]
REWRITE_ONLY = ("criterion", "criterion_options", "initial", "initial_finetune", "finetune", "strength", "pattern")


@dataclass(frozen=True)
class MetanetConfig:
    """Sizes of the metanetwork. The paper's for ResNet-56: 8 layers of 64; ResNet-50: 6 of 16; ViT-B/16: 3 of 4."""

    hidden: int = 32
    """Width of node and edge states."""
    layers: int = 4
    """Rounds of message passing."""
    form: Form = "gated"
    """gated: edges updated by a gate and a sum, normalised; paper: multiplied by products of node states."""
    rho: float = 0.1
    """Size of the rewrite, relative to the root mean square of each tensor (paper: absolute, 0.0005 to 0.05)."""
    keep_norms: bool = True
    """Scale every rewritten weight (biases apart) back to its norm. Without it, meta-training shrinks a network with
    BatchNorm as a whole: that lowers the shrinkage term, changes nothing that pruning sees, and multiplies the
    effective learning rate of the training that follows. False: the paper's."""
    checkpointing: bool | None = None
    """Recompute each round in the backward pass: less memory, a third more time. None: where the states of all rounds
    would take more than 2 GB."""

    def __post_init__(self) -> None:
        require_choice("metagraph.metanet.form", self.form, ("gated", "paper"))
        require_number("metagraph.metanet.hidden", self.hidden, 2)
        require_number("metagraph.metanet.layers", self.layers, 1)
        require_number("metagraph.metanet.rho", self.rho, 0.0, open_low=True)

    def kept_bytes(self, edges: int) -> float:
        """Estimate what the backward pass holds without recomputing: about three float32 states per edge and round."""
        return 3 * 4.0 * edges * self.hidden * self.layers


@dataclass(frozen=True, kw_only=True)
class DataModelConfig:
    """The paper: 10 networks trained from scratch, pruned to a speed-up of 1.32 (ResNet-56) by the criterion."""

    count: int = 5
    """Data models per task, the last of which judges."""
    scratch: TrainConfig | None = None
    """Training of each from a new initialisation, before the light pruning (the paper's): for networks that were
    trained independently. None: all start from the task's own weights, for that network and what is fine-tuned from it.
    """
    shares: tuple[float, float] = (0.7, 1.0)
    """Least and most of the MACs that a data model keeps; odd ones are pruned by the criterion, even ones at random."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=1, lr=0.01))
    """Training after the light pruning."""

    def __post_init__(self) -> None:
        require_number("metagraph.data_models.count", self.count, 2)
        low, high = self.shares
        if not 0 < low <= high <= 1:
            raise ConfigError(f"metagraph.data_models.shares={[low, high]}: give least and most, in (0, 1]")

    @property
    def epochs(self) -> float:
        return self.train.epochs + (0.0 if self.scratch is None else self.scratch.epochs)


@dataclass(frozen=True, kw_only=True)
class MetaConfig:
    """Meta-training. `objective="sparsity"` is the paper's; the figures and the other objectives are ours."""

    steps: int = 900
    """Updates of the metanetwork, each on one data model."""
    objective: Objective = "cut"
    """sparsity: cross-entropy of the rewritten network plus weighted shrinkage; cut: the same, but the network is first
    pruned to a random budget by the criterion, so that the loss sees what pruning does; straight-through: as cut, with
    a gradient for which channels are kept, too (masks at full size: slower)."""
    batches: int = 2
    """Mini-batches whose gradients are averaged in one update; the metanetwork runs once."""
    batch_size: int = 128
    """Samples of a mini-batch."""
    tune_steps: int = 0
    """SGD steps on the pruned network before the loss is taken: its gradient there is applied to the rewritten weights
    (first-order MAML), so that what counts is the network after fine-tuning. States are judged after as many."""
    tune_lr: float = 0.02
    """Learning rate of these steps (momentum 0.9)."""
    lr: float = 3e-3
    """Learning rate (AdamW, falling to zero along a cosine)."""
    weight_decay: float = 5e-4
    """Decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Clip the metanetwork's gradient."""
    shrinkage: float = 0.1
    """Weight of the shrinkage term at full strength, relative to the network's own squared norm."""
    alpha: float = 16.0
    """How much harder the weakest channel of a group is shrunk than the strongest."""
    smallest: float = 0.25
    """Share of the MACs that strength 1 stands for; strength 0 stands for all."""
    evaluate_every: int = 50
    """Steps between evaluations on the validation split; the best state is kept."""
    shares: tuple[float, ...] = (0.75, 0.5, 0.3)
    """Shares of the MACs at which a state is judged."""
    judged: int = 1000
    """Validation samples of an evaluation, rounded up to whole mini-batches."""
    save_every: int = 25
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        require_choice("metagraph.meta.objective", self.objective, ("cut", "straight-through", "sparsity"))
        if self.objective == "straight-through" and self.tune_steps:
            raise ConfigError(
                "objective='straight-through' masks the network, tune_steps trains a cut one: leave one out"
            )
        for name in ("steps", "batches", "batch_size", "evaluate_every", "save_every", "judged"):
            require_number(f"metagraph.meta.{name}", getattr(self, name), 1)
        for name in ("tune_steps", "weight_decay", "shrinkage"):
            require_number(f"metagraph.meta.{name}", getattr(self, name), 0.0)
        for name in ("tune_lr", "lr", "max_grad_norm"):
            require_number(f"metagraph.meta.{name}", getattr(self, name), 0.0, open_low=True)
        require_number("metagraph.meta.alpha", self.alpha, 1.0)
        require_number("metagraph.meta.smallest", self.smallest, 0.0, 0.99, open_low=True)
        if not self.shares:
            raise ConfigError("metagraph.meta.shares is empty: name at least one share of the MACs to judge states at")
        for share in self.shares:
            require_number("metagraph.meta.shares", share, 0.0, 1.0, open_low=True)

    def strength(self, share: float) -> float:
        """Compute what to tell the metanetwork when a network shall keep `share` of its MACs."""
        return min(1.0, max(0.0, (1 - share) / (1 - self.smallest)))

    def share(self, strength: float) -> float:
        return 1 - strength * (1 - self.smallest)


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """How a scoring rule is learned."""

    zoo: str | None = None
    """Folder of `metaprune zoo make`, whose networks the rule is learned on; None: on the recipe's own."""
    leave_out: tuple[str, ...] = ()
    """Families and data sets of the zoo that nothing is learned from."""
    least_accuracy: float = 0.5
    """Networks of the zoo below it are left out."""
    steps: int = 16
    """Updates of the rule."""
    pairs: int = 4
    """Antithetic pairs of rules per update."""
    networks: int = 6
    """Networks that a pair is compared on."""
    shares: tuple[float, ...] = (0.3, 0.5)
    """Shares of the MACs at which rules are judged; pairs are compared at shares in their range."""
    sigma: float = 0.15
    """Size of the steps that a pair tries, where the rule's norm is 1."""
    rate: float = 0.2
    """Length of the first update, where the rule's norm is 1; it falls to zero along a line."""
    judge_every: int = 4
    """Updates between judgements on the networks that choose; the best rule is kept."""

    def __post_init__(self) -> None:
        for name in ("steps", "pairs", "networks", "judge_every"):
            require_number(f"metagraph.score.{name}", getattr(self, name), 1)
        for name in ("sigma", "rate"):
            require_number(f"metagraph.score.{name}", getattr(self, name), 0.0, open_low=True)
        require_number("metagraph.score.least_accuracy", self.least_accuracy, 0.0, 1.0)
        if not self.shares:
            raise ConfigError("metagraph.score.shares is empty: name at least one share of the MACs to judge rules at")
        for share in self.shares:
            require_number("metagraph.score.shares", share, 0.0, 1.0, open_low=True)


@dataclass(frozen=True, kw_only=True)
class MetaGraphConfig(MethodOptions):
    """Metanetwork: a scoring rule learned on a zoo of networks, or a rewrite of the weights before the cut."""

    name: ClassVar[str] = "metagraph"
    needs_data: ClassVar[bool] = True
    many_networks: ClassVar[bool] = True

    objective: Literal["score", "rewrite"] = field(default="score", metadata=BY_FIT)
    """score: a rule ranks channels by what calibration says of them; rewrite: a graph neural network rewrites the
    weights so that plain pruning hurts less (the paper)."""
    score: ScoreConfig = field(default_factory=ScoreConfig, metadata=BY_FIT)
    """How a scoring rule is learned."""
    allocate: Allocate = "criterion"
    """Widths with a scoring rule, as of the plain criteria: by the ranking, alike, or by measured sensitivity."""
    metanet: MetanetConfig = field(default_factory=MetanetConfig, metadata=BY_FIT)
    """Sizes and form of the metanetwork."""
    data_models: DataModelConfig = field(default_factory=DataModelConfig, metadata=BY_FIT)
    """Networks that it is meta-trained on."""
    meta: MetaConfig = field(default_factory=MetaConfig, metadata=BY_FIT)
    """Meta-training."""
    criterion: str = field(default="magnitude", metadata=BY_FIT)
    """Method that ranks channels, in meta-training and afterwards."""
    criterion_options: Mapping[str, Any] | None = field(default=None, metadata=BY_FIT)
    """Its options; None: magnitude's p = 1 (L1, which did better than L2 here), another criterion's own defaults."""
    initial: float = 1.0
    """Share of the MACs that an initial pruning leaves (the paper: 1 / 1.32 for ResNet-56); 1 leaves it out."""
    initial_finetune: TrainConfig | None = None
    """Training after the initial pruning; None leaves it out."""
    finetune: TrainConfig | None = None
    """Training after the rewrite; None leaves it out. What follows the last cut is the recipe's `[recover]`."""
    strength: float | None = None
    """0..1, how hard to rewrite; None: by the budget's share of the MACs (with masks, of the parameters)."""
    pattern: str = "channels"
    """What goes after the rewrite: channels; or single weights, as in method `weight_masks`: unstructured, or N:M as
    2:4. Meta-training is that of channels all the same."""
    artifact: str | None = None
    """Folder of `metaprune fit metagraph`, of any network. None: the rule that comes with metaprune; with a zoo, or
    objective = "rewrite", fit on this task first."""

    def __post_init__(self) -> None:
        require_choice("metagraph.objective", self.objective, ("score", "rewrite"))
        require_choice("metagraph.allocate", self.allocate, get_args(Allocate))
        if self.objective == "score" and self.artifact is None:
            self.require_no_rewrite()
        require_number("metagraph.initial", self.initial, 0.0, 1.0, open_low=True)
        if self.strength is not None:
            require_number("metagraph.strength", self.strength, 0.0, 1.0)
        if self.initial_finetune is not None and self.initial == 1:
            raise ConfigError("initial_finetune trains after an initial pruning: set initial below 1, or leave it out")
        kind = method_spec(self.criterion).config_class()
        if not issubclass(kind, RankingConfig):
            raise ConfigError(
                f"criterion {self.criterion!r} ranks no channels: use magnitude, bn_scale, taylor, fpgm or snip"
            )
        resolved_options(self.criterion, self.ranking_options)
        if self.pattern != "channels":
            parse_pattern(self.pattern, also="channels, ")

    def require_no_rewrite(self) -> None:
        """Raises ConfigError for options that only a rewrite follows."""
        default = {f.name: f.default for f in fields(MetaGraphConfig)}
        others = [n for n in REWRITE_ONLY if getattr(self, n) != default[n]]
        if others:
            raise ConfigError(f'{", ".join(others)}: a scoring rule has no use for it; set objective = "rewrite"')

    @property
    def ranking_options(self) -> Mapping[str, Any]:
        """Options of the criterion of channels."""
        if self.criterion_options is not None:
            return self.criterion_options
        return {"p": 1} if self.criterion == "magnitude" else {}
