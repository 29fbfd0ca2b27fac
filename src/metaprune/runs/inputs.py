"""From a RunConfig to the objects of a run: model with weights, data, example inputs, device."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from metaprune.core.batches import described_inputs, with_batch
from metaprune.core.errors import ConfigError, DataError, MetapruneError, first_line, one_line_error
from metaprune.core.files import write_tensors
from metaprune.core.modes import device_of
from metaprune.core.read import read_json
from metaprune.core.rng import Rng
from metaprune.core.tensors import named_tensors
from metaprune.data import Data, Split, as_data, load_data
from metaprune.data.augment import augmented
from metaprune.data.types import NO_SAMPLES
from metaprune.graph.capture import untouched
from metaprune.models import create, default_input_shape
from metaprune.models.sources import PRETRAINED
from metaprune.network import Network
from metaprune.objective import TeacherSplit
from metaprune.objective.batch import call_arguments, call_model, share_of, tensors_in
from metaprune.runs.config import ModelConfig, RunConfig
from metaprune.train.processes import by_main_process

log = logging.getLogger("metaprune")


@dataclass(frozen=True)
class RunInputs:
    model: nn.Module
    options: dict[str, Any]  # as resolved: number of classes and channels from the data
    data: Data | None
    args: tuple
    kwargs: dict[str, Any]
    device: torch.device

    def batch_of(self, size: int) -> tuple[tuple, dict[str, Any]]:
        """Example inputs, repeated or cut to `size` samples."""
        return with_batch(self.args, self.kwargs, size)

    def save_dense(self, path: Path) -> int:
        """Write the dense network's tensors (the main process does); returns the size of the file in bytes."""
        tensors, _ = named_tensors(self.model)
        by_main_process(lambda: write_tensors(path, tensors))
        return path.stat().st_size


def resolve_device(name: str) -> torch.device:
    """Raises ConfigError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {name!r} cannot be used here ({first_line(error)}); use cpu, or auto for what there is"
        ) from error
    return torch.device(name)


def load_inputs(config: RunConfig) -> RunInputs:
    """Build everything a run needs. Random initial weights come from the run's seed.

    Raises:
        ConfigError, DataError, WeightsError: what cannot be built, or does not fit together.
    """
    device = resolve_device(config.device)
    data = None
    if config.data is not None:
        d = config.data
        data = load_data(
            d.spec,
            seed=config.seed,
            limit=d.limit,
            image_size=d.image_size,
            channels=d.channels,
            skip_corrupt=d.skip_corrupt,
            tokenizer=d.tokenizer,
            sequence_length=d.sequence_length,
            model_tokenizer=config.model.spec.removeprefix("hf:") if config.model.spec.startswith("hf:") else None,
        )
        if d.judge == "val":
            data = dataclasses.replace(data, test=None)
        extra = dataclasses.asdict(d.augment)
        data = dataclasses.replace(data, train=augmented(data.train, data.num_classes, extra))
        if config.objective is not None:
            data = as_data(data, objective={"kind": config.objective.kind, **config.objective.options})
    _say_seen(config, data)
    options = dict(config.model.options)
    if data is not None and not config.model.spec.startswith(("python:", "builtin:")):
        if data.num_classes > 0:
            options.setdefault("num_classes", data.num_classes)
        grey = config.model.spec.startswith("timm:") and data.input_shape[:1] != (3,)
        if data.input_shape and (grey or config.model.spec.startswith("zoo:")):  # other packages' take three channels
            options.setdefault("in_channels", data.input_shape[0])
    with Rng(config.seed).child("model").torch_global():
        model = create(config.model.spec, weights=config.model.weights, new_head=config.model.new_head, **options)
    model.to(device)
    require_fit(model, data)
    args, kwargs = example_inputs(model, config, data)
    args, kwargs = pytree.tree_map(lambda x: x.to(device) if isinstance(x, torch.Tensor) else x, (args, kwargs))
    return RunInputs(model, options, data, args, kwargs, device)


def has_random_weights(model: ModelConfig) -> bool:
    """Tell whether nothing gives the network its weights: no file, no package, no folder, no function of the user's."""
    scheme, _, name = model.spec.partition(":")
    if model.weights is not None or scheme not in ("zoo", "timm", "torchvision"):
        return False
    return scheme != "timm" or not ("/" in name or ":" in name or Path(name).expanduser().is_dir())


def _say_seen(config: RunConfig, data: Data | None) -> None:
    """Log the sizes of the splits, and warn where given weights may have seen the images that they are judged on."""
    if data is None:
        return
    sizes = data.split_sizes()
    parts = ", ".join(f"{part} {'?' if n is None else f'{n:,}'}" for part, n in sizes.items() if part != "carved")
    log.info("%s: %s samples; %s", data.name, parts, f"judged on {'val' if data.test is None else 'test'}")
    judged = "val" if data.test is None else "test"
    given = config.model.weights not in (None, PRETRAINED) and config.train is None
    if given and judged in data.carved and not _trained_on_these_splits(config):
        warnings.warn(
            f"the {judged} split ({sizes[judged]:,} samples) is cut out of the training part of {data.name}: weights "
            "that were trained on that part have seen it, so its figures flatter; give a val or test part of its own",
            stacklevel=3,
        )


def _trained_on_these_splits(config: RunConfig) -> bool:
    """Whether a run of the same data made the weights: splits do not depend on the seed."""
    path = Path(str(config.model.weights)).parent / "config.json"
    try:
        trained = read_json(path, remedy="").get("data")
    except DataError:  # no such file, or another's
        return False
    return isinstance(trained, dict) and config.data is not None and trained.get("spec") == config.data.spec


def _ids_beyond(model: nn.Module, inputs: Any) -> str:
    """Say so where token ids are larger than a model's embedding; empty where they are not."""
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    ids = [t for t in tensors_in(inputs) if t.numel() and not t.is_floating_point()]
    largest = max((int(t.max()) for t in ids), default=0)
    if not isinstance(embedding, nn.Embedding) or largest < embedding.num_embeddings:
        return ""
    rows = embedding.num_embeddings
    return f"Token ids go up to {largest}, and its embedding has {rows} rows: take the model's own tokenizer"


def require_fit(model: nn.Module, data: Data | None) -> None:
    """Run `model` on one batch of every split before hours are spent.

    Raises:
        DataError: it does not run on these inputs, or its output and the labels are not of the objective's kind.
    """
    if data is None:
        return
    with untouched(model), torch.random.fork_rng(devices=[]), torch.no_grad():
        for role, split in _splits(data):
            inputs, target = next(iter(split.batches(2, device=device_of(model))))
            try:
                output = call_model(model, inputs)
            except Exception as error:  # a user's forward may raise anything
                given = described_inputs(*call_arguments(inputs))
                advice = "Set data.channels and data.image_size, or the model's options, so that they fit"
                if not data.input_shape:
                    advice = "Give batches whose inputs have the names and shapes that the model takes"
                if beyond := _ids_beyond(model, inputs):
                    advice = beyond
                raise DataError(
                    f"{type(model).__name__} does not run on samples of {data.name}, {role} split ({given}): "
                    f"{one_line_error(error)}. {advice}"
                ) from error
            if data.objective is not None:
                if data.objective.is_label_free and not isinstance(split, TeacherSplit):
                    target = output  # bound to no network yet: labels, if there are any, do not matter
                try:
                    data.objective.require_fit(output, target, data=data.name, num_classes=data.num_classes)
                except MetapruneError:
                    raise
                except Exception as error:  # losses may raise anything on what they do not expect
                    raise DataError(
                        f"objective {data.objective.name!r} does not take what {type(model).__name__} returns on "
                        f"samples of {data.name}, {role} split: choose another objective=, or check the model's output "
                        f"({one_line_error(error)})"
                    ) from error


def _splits(data: Data) -> list[tuple[str, Split]]:
    """The splits by name; validation first, which example inputs are of."""
    parts = [("val", data.val), ("train", data.train), ("test", data.test)]
    return [(role, split) for role, split in parts if split is not None and split is not NO_SAMPLES]


def require_traced(network: Network, data: Data | None) -> None:
    """Run the traced graph on one batch of every split: it takes the inputs that it was traced with, and no others.

    Raises:
        DataError: it does not run; says what it was traced with.
    """
    if data is None:
        return
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for role, split in _splits(data):
            inputs, _ = next(iter(split.batches(2, device=network.device)))
            args, kwargs = call_arguments(inputs)
            try:
                network.run(*args, **kwargs)
            except Exception as error:  # operators may raise anything
                traced = described_inputs(*network.captured.example)
                raise DataError(
                    f"the traced graph of {type(network.model).__name__} does not run on {role} batches of {data.name} "
                    f"({described_inputs(args, kwargs)}): it was traced with {traced}. Give example inputs of the same "
                    "names and sizes as the batches (only the first dimension may differ), padded to one length, or "
                    f"leave what it does not know out of the batches ({one_line_error(error)})"
                ) from error


def example_inputs(model: nn.Module, config: RunConfig, data: Data | None) -> tuple[tuple, dict[str, Any]]:
    """Take two samples: random of the configured shape, else of the data, else random of the model's own shape."""
    if config.model.input_shape is None and data is not None:
        with torch.random.fork_rng(devices=[]):  # a DataLoader draws from the global generator
            inputs, _ = next(iter(data.val.batches(2)))
        return call_arguments(share_of(inputs, 0, 2, 1))
    shape = config.model.input_shape or default_input_shape(config.model.spec, model)
    if shape is not None:
        return (torch.randn(2, *shape, generator=Rng(config.seed).child("example").torch()),), {}
    dummy = getattr(model, "dummy_inputs", None)  # transformers models bring their own
    if isinstance(dummy, Mapping):
        return (), dict(dummy)
    raise ConfigError(
        f"the input shape of {config.model.spec} is not known; set model.input_shape = [3, 224, 224] (no batch)"
    )
