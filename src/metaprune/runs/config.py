"""A run as plain data: torch-free frozen dataclasses, a strict TOML reader, and a dump that can be replayed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from metaprune.calibration.config import COMPENSATIONS, Compensate
from metaprune.core.arguments import check_fields
from metaprune.core.errors import ConfigError, closest
from metaprune.core.read import damaged, read_json, read_toml
from metaprune.core.strict import from_dict, override
from metaprune.protocol.registry import current_method_name, public_options, resolved_options
from metaprune.recover.config import RecoverConfig
from metaprune.runs.auto import AUTO, resolved_method
from metaprune.runs.schema import read_record
from metaprune.runs.trust import code_in, require_trusted
from metaprune.train.config import TrainConfig, require_choice, require_number
from metaprune.values import Budget, Constraints

_LARGEST_SAMPLE = 2**28  # values, 1 GB
_MOST_REPEATS = 100_000

MOST_ROUNDS = 1000
"""More than a network has steps of cost; each traces the network and scores its channels anew."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Which network."""

    spec: str
    """zoo:NAME, builtin:NAME, timm:NAME_OR_DIR, torchvision:NAME, hf:NAME_OR_DIR or python:module:function."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the model: num_classes, widths, in_channels, ..."""
    weights: str | None = None
    """Weight file (safetensors, or a state dict that loads with weights_only), or `pretrained`: the package's own."""
    new_head: bool = False
    """The weights are of a network for other classes: its last layer is left as it is initialised."""
    input_shape: tuple[int, ...] | None = None
    """(channels, height, width) of one sample; by default that of the data, or of the model."""

    def __post_init__(self) -> None:
        check_fields(self)
        for size in self.input_shape or ():
            require_number("model.input_shape", size, 1)
        if (values := math.prod(self.input_shape or ())) > _LARGEST_SAMPLE:
            raise ConfigError(
                f"model.input_shape={self.input_shape} has {values:,} values: give the shape of one sample"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """Augmentation of training images beyond the crop and mirror, by torchvision's transforms (extra `vision`)."""

    rand_augment: int | None = None
    """Magnitude of RandAugment, 0 to 30; 9 is usual."""
    mixup: float = 0.0
    """Alpha of mixup; 0 leaves it out."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0 leaves it out."""
    random_erasing: float = 0.0
    """Share of images that lose a random rectangle."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which data."""

    spec: str
    """builtin:NAME, imagefolder:DIR, npz:FILE, text:FOLDER_OR_FILE, hf:NAME_OR_DIR or python:module:function."""
    limit: int | None = None
    """Use this many training samples (stratified)."""
    image_size: int | None = None
    """Resize images to this many pixels a side."""
    channels: int | None = None
    """1 or 3: convert images to grey or colour."""
    tokenizer: str | None = None
    """Of text: a tokenizer.json, a folder of one, or a name on the Hub. Default: that of an hf: model."""
    sequence_length: int | None = None
    """Tokens of a sequence of text; default 128."""
    judge: Literal["test", "val"] = "test"
    """What figures are of: the test part, or the validation part, where a choice follows from them."""
    skip_corrupt: bool = False
    """Leave out image files that cannot be read, with a warning, instead of stopping."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """More augmentation in training."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """What the network is trained for and judged by."""

    kind: str
    """classification, multi_label, regression, segmentation, next_token, token_classification, own_loss, match_outputs,
    one that a package registered, or python:module:attribute."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the objective, as classes of segmentation."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodConfig:
    """Which method decides what stays."""

    name: str = AUTO
    """A name that `metaprune methods` lists, python:module:Class, or auto: what kept most in our own measurements."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the method: scope, steps, p, ... All of them, once this object is made: with their defaults."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.name != AUTO:  # a run's config resolves it, which knows whether there are data
            object.__setattr__(self, "name", current_method_name(self.name))
            object.__setattr__(self, "options", resolved_options(self.name, self.options))


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyConfig:
    """How milliseconds are measured, before and after in turns."""

    batch_size: int = 64
    """Samples per forward pass."""
    repeats: int = 20
    """Timed passes; the median is reported. 0 measures nothing."""
    table: str | None = None
    """File that `metaprune latency` wrote; a budget in latency_ms needs one."""

    def __post_init__(self) -> None:
        check_fields(self)
        require_number("latency.batch_size", self.batch_size, 1)
        require_number("latency.repeats", self.repeats, 0, _MOST_REPEATS)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything that decides a run; saved with it as config.json."""

    model: ModelConfig
    budget: Budget
    data: DataConfig | None = None
    objective: ObjectiveConfig | None = None
    """By default the data's own: classification where there are classes."""
    method: MethodConfig = field(default_factory=MethodConfig)
    constraints: Constraints = field(default_factory=Constraints)
    train: TrainConfig | None = None
    """Train the dense network first (it has no weights, or they shall be tuned)."""
    recover: RecoverConfig = field(default_factory=lambda: RecoverConfig(kind="auto"))
    compensate: Compensate | Literal["auto"] = "auto"
    """How weights make up for dropped channels, by unlabelled training samples: bias: biases and BatchNorm statistics;
    least-squares: all weights of convolutions and linear layers; auto: as method auto says, else none."""
    rounds: int = 1
    """Cut and recover in so many rounds, by the same factor of the cost each."""
    form: Literal["auto", "module", "graph"] = "auto"
    """module: the model's own class; graph: a torch.fx.GraphModule; auto: module where it verifies."""
    latency: LatencyConfig = field(default_factory=LatencyConfig)
    also: tuple[ModelConfig, ...] = ()
    """More networks for the meta-training of a method that learns from many; same data, trained as the first is."""
    batch_size: int = 128
    """Samples per forward pass of scoring and evaluation."""
    seed: int = 0
    device: str = "auto"
    """cpu, cuda, mps, or auto: cuda where it is, else cpu."""

    def __post_init__(self) -> None:
        check_fields(self)
        require_number("batch_size", self.batch_size, 1)
        require_number("rounds", self.rounds, 1, MOST_ROUNDS)
        require_choice("compensate", self.compensate, (AUTO, *COMPENSATIONS))
        chosen = resolved_method(self.method.name, self.method.options, self.compensate, self.data is not None)
        object.__setattr__(self, "method", MethodConfig(name=chosen[0], options=chosen[1]))
        object.__setattr__(self, "compensate", chosen[2])
        if self.data is None and self.compensate != "none":
            raise ConfigError("compensate needs data: add a [data] table with a spec, or set it to none")
        if self.form not in ("auto", "module", "graph"):
            raise ConfigError(f"form is auto, module or graph, not {self.form!r}")
        if self.data is None and (self.train is not None or self.recover.kind not in ("auto", "none")):
            raise ConfigError(
                "training and recovery need data: add a [data] table with a spec, or set recover.kind to none"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as config.json holds it: without what a method keeps out of files."""
        plain = json.loads(json.dumps(dataclasses.asdict(self), default=_plain))
        plain["method"]["options"] = public_options(self.method.name, self.method.options)
        return plain

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not plain data")


# ---------------------------------------------------------------------------------------------------- reading


def read_recipe(path: str | Path, overrides: Mapping[str, Any] | None = None, *, trust: bool = False) -> RunConfig:
    """Read a RunConfig from TOML, or from the record.json or config.json of a run, which repeats that run.

    Args:
        overrides: dotted key -> value, as `{"train.epochs": 3}`, set before the checks.
        trust: follow code that the record or config of another user's run names.

    Raises:
        ConfigError: no such file, TOML that does not parse, an unknown key (with the closest), a value of a wrong type.
    """
    path = Path(path)
    if not path.is_file():
        near = [p.stem for p in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        raise ConfigError(f"no recipe {path}.{closest(path.stem, near)} Give a TOML file, or the record.json of a run")
    if path.suffix == ".json":
        data = config_of_run(path)
        require_trusted(path.parent, data, given=code_in(overrides or {}), trust=trust)
    else:
        data = read_toml(path)
    return from_dict(RunConfig, override(data, overrides or {}))


def config_of_run(path: Path) -> dict[str, Any]:
    """The config in a run's record.json or config.json, as plain data: nothing that it names is imported."""
    data = read_record(path)
    config = data.get("config") if data.get("cost") is not None else read_json(path, remedy="run its command again")
    if config is not None and not isinstance(config, dict):
        damaged(path, "its config is no table", "run its command again")
    if config is None:
        raise ConfigError(f"{path} is the record of a call of prune, without a config: use metaprune.replay in Python")
    return config
