"""Options of PruningNet, without torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from metaprune.core.errors import ConfigError
from metaprune.protocol.options import AT_RUN_TIME, BY_FIT, MethodOptions
from metaprune.search.config import ENVIRONMENT, PAPER_GRID, SearchConfig
from metaprune.train.config import TrainConfig, require_choice, require_number

Weights = Literal["generated", "shared", "closed-form"]
Measure = Literal["likelihood", "metric"]
Sampling = Literal["uniform", "stratified", "sandwich"]
_GENERATORS = ("hidden", "hidden_of", "rank", "blocks", "start")
_TRAINING = ("sampling", "distil", "structures", "norm_affine", "train")


@dataclass(frozen=True, kw_only=True)
class PruningNetConfig(MethodOptions):
    """A network generates the weights of any structure, an evolutionary search finds the best in a budget."""

    name: ClassVar[str] = "pruningnet"
    needs_data: ClassVar[bool] = True

    weights: Weights = field(default="shared", metadata=BY_FIT)
    """generated: by a small network per tensor (the paper's); shared: cropped from one set (slimmable networks), which
    ranks structures as well or better, takes 1/33 of the memory and less time (benchmarks/README.md); closed-form: of
    a trained network, solved for every structure from one calibration pass, without training, and handed over."""
    sampling: Sampling = field(default="uniform", metadata=BY_FIT)
    """uniform: one random structure per mini-batch (the paper's); stratified: one of a random budget, from the MACs of
    the narrowest structure to those of the widest; sandwich: widest, narrowest and random ones."""
    distil: bool = field(default=False, metadata=BY_FIT)
    """With sandwich: the narrower structures learn the widest one's output."""
    structures: int = field(default=4, metadata=BY_FIT)
    """Structures per mini-batch of sandwich."""
    hidden: int = field(default=32, metadata=BY_FIT)
    """Width of a generator's first layer."""
    hidden_of: Mapping[str, int] = field(default_factory=dict, metadata=BY_FIT)
    """Glob over parameter names -> another width."""
    rank: int | None = field(default=None, metadata=BY_FIT)
    """Factor the generators' second layer; None: whole."""
    blocks: tuple[str, ...] = field(default=(), metadata=BY_FIT)
    """Globs over modules whose tensors all read the ratios of all groups in the module; others read their own."""
    start: Literal["network", "paper"] = field(default="network", metadata=BY_FIT)
    """network: generators start from the network's own weights; paper: from PyTorch's initialisation of Linear."""
    channels: Literal["magnitude", "first"] = field(default="magnitude", metadata=BY_FIT)
    """Which channels a width keeps: the largest of the given network, or the first ones."""
    grid: tuple[float, ...] = field(default=PAPER_GRID, metadata=BY_FIT)
    """Candidate keep ratios."""
    norm_affine: bool = field(default=True, metadata=BY_FIT)
    """Whether BatchNorm's scale and shift are trained (shared by all structures)."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            epochs=16, lr=0.1, schedule="linear", nesterov=False, weight_decay=4e-5, label_smoothing=0.1
        ),
        metadata=BY_FIT,
    )
    """Training of the PruningNet; the paper takes a quarter of the epochs of training from scratch."""
    sub_validation: int | None = field(default=None, metadata=BY_FIT)
    """Training images held out to score structures (the paper: 50 per class); None: 5,000, or half of the training
    split where that is less."""
    calibration: int = 2048
    """Images of sub-training that BatchNorm statistics of every candidate are taken from; all, if there are fewer."""
    score: Measure = "likelihood"
    """metric: the objective's primary one (the paper's accuracy); or likelihood: exp of minus the loss, in
    classification the geometric mean of the probabilities of the right classes. It tells structures apart that a
    thousand images give the same accuracy."""
    batch_size: int = 512
    """Samples per forward pass of scoring."""
    screening: int = 512
    """Samples for statistics, and as many for the score (in whole batches), that evolution and random search look at a
    structure with first: only those that could become parents are scored on all. 0: all structures on all."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """How structures are searched."""
    inherit: bool | None = None
    """Hand over the winner's weights with calibrated statistics, to fine-tune or distil; False: only the structure. By
    default closed-form ones are handed over; without them, compensate="least-squares" solves better ones."""
    artifact: str | None = None
    """Folder of a fitted PruningNet (`metaprune fit`); None: fit one first."""
    storage: str | None = field(default=None, repr=False)
    """Optuna storage URL of the search; None: that of the environment variable METAPRUNE_STORAGE, or a file in the
    run's folder."""
    runs_at: str | None = field(default=None, repr=False, metadata=AT_RUN_TIME)
    """Storage of the search whose winner is made, in the place of `storage`; it may hold a password."""

    def __post_init__(self) -> None:
        require_choice("weights", self.weights, get_args(Weights))
        require_choice("sampling", self.sampling, get_args(Sampling))
        require_choice("start", self.start, ("network", "paper"))
        require_choice("channels", self.channels, ("magnitude", "first"))
        require_choice("score", self.score, ("metric", "likelihood"))
        for name, low in (
            ("structures", 3),
            ("hidden", 1),
            ("calibration", 2),
            ("batch_size", 2),
            ("screening", 0),
        ):
            require_number(f"pruningnet.{name}", getattr(self, name), low)
        if self.sub_validation is not None:
            require_number("pruningnet.sub_validation", self.sub_validation, 1)
        if self.weights != "generated":
            why = f"of generators, and {self.weights} weights have none; add weights='generated'"
            self._require_defaults(_GENERATORS, why)
        if self.weights == "closed-form":
            self._require_defaults(_TRAINING, "of training, and closed-form weights have none; take shared ones")
        if self.distil and self.sampling != "sandwich":
            raise ConfigError("distil=True needs sampling='sandwich': the teacher is the widest structure of each step")
        if self.rank is not None:
            require_number("pruningnet.rank", self.rank, 1)

    @property
    def hands_over(self) -> bool:
        """Tell whether the proposal carries weights."""
        return self.weights == "closed-form" if self.inherit is None else self.inherit

    def _require_defaults(self, names: tuple[str, ...], why: str) -> None:
        fields = {f.name: f for f in dataclasses.fields(self)}
        if moot := [n for n in names if getattr(self, n) != _default(fields[n])]:
            raise ConfigError(f"{', '.join(moot)}: {why}")

    def public(self) -> dict[str, Any]:
        """Refuse a storage whose URL holds a password, which config.json would show."""
        if self.storage is not None:
            from metaprune.search.url import has_secret

            if has_secret(self.storage):
                raise ConfigError(
                    "the storage's password would be written into the run folder (or its URL does not parse, so that "
                    "nobody can tell): leave it out of the URL (~/.pgpass or PGPASSWORD hold it), or give the whole "
                    f"URL in the environment variable {ENVIRONMENT} or to `metaprune search --storage`, which write it "
                    "nowhere"
                )
        return super().public()


def _default(option: dataclasses.Field) -> Any:
    return option.default if option.default is not dataclasses.MISSING else option.default_factory()  # type: ignore[misc]
