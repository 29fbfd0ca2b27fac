"""Folders of transformers, written and read; with `per_layer_config` where the layers of a model differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from metaprune.core.arguments import check_arguments
from metaprune.core.errors import DataError, NotAvailableError, first_line
from metaprune.core.side_effects import copy_model
from metaprune.export.factories import checked_transformers, plain_config
from metaprune.graph.capture import untouched
from metaprune.surgery.cut import Pruned
from metaprune.surgery.per_layer import PerLayer, layered_class, per_layer_numbers, shortened, with_layers


def save_pretrained(pruned: Pruned, folder: str | Path) -> Path:
    """Write a pruned transformers model as `save_pretrained` does, with `per_layer_config` where its layers differ.

    Layers that were dropped whole are left out, and the config counts the others: transformers reads such a folder.
    Nothing is written unless a model that is built from the config equals this one bit for bit on the example inputs.

    Args:
        pruned: `result.pruned`, in module form; weights are those that its model has now.

    Raises:
        NotAvailableError: no numbers of the config give these widths, not even layer by layer; says which.
    """
    check_arguments(save_pretrained, locals())
    folder, model = Path(folder), pruned.model
    if pruned.config.changes is None:
        model, numbers = _described_by_layer(pruned)
        if numbers:
            model = copy_model(model)
            model.config = with_layers(model.config, numbers)
    model.save_pretrained(folder)  # pyrefly: ignore[not-callable] (of transformers)
    return folder


def from_pretrained(folder: str | Path, **options: Any) -> nn.Module:
    """Load a folder of `save_pretrained`, whether or not its layers differ, in eval mode; nothing is fetched or run.

    Args:
        options: of transformers' own `from_pretrained`, as `dtype`.

    Raises:
        DataError: no such folder, no model of transformers, or tensors of other shapes than its config says.
    """
    check_arguments(from_pretrained, locals())
    folder = Path(folder)
    cls, config = _described(folder)
    layered = getattr(config, "is_heterogeneous", False)
    try:
        model = (layered_class(cls) if layered else cls).from_pretrained(
            folder, config=config, local_files_only=True, use_safetensors=True, **options
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise DataError(f"{folder} is not what its config says: {first_line(error)}") from error
    model.__class__ = cls
    return model.eval()


def _described(folder: Path) -> tuple[Any, Any]:
    """Class and config of a folder; of the config, what no stranger could do harm with."""
    try:
        held = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} holds no config.json of transformers: {first_line(error)}") from error
    if not isinstance(held, dict):
        raise DataError(f"{folder / 'config.json'} is no config: save the model again")
    layers, labels = held.pop("per_layer_config", None), held.get("id2label")
    held.pop("allow_global_per_layer_attribute_access", None)
    plain = plain_config(held)
    if isinstance(labels, dict):
        plain["num_labels"] = len(labels)
    names = held.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    cls, config = checked_transformers({"class": name, "model_type": held.get("model_type"), "config": plain})
    if isinstance(labels, dict):
        config.id2label = {int(i): str(label) for i, label in labels.items()}
        config.label2id = {label: i for i, label in config.id2label.items()}
    return cls, config if not layers else with_layers(config, _numbers(folder, layers))


def _numbers(folder: Path, layers: Any) -> PerLayer:
    """Numbers of single layers.

    Raises:
        DataError: anything else than numbers by name, by layer.
    """
    try:
        numbers = {int(i): dict(own) for i, own in layers.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(f"{folder / 'config.json'}: per_layer_config holds no numbers by layer") from error
    if odd := [k for own in numbers.values() for k, v in own.items() if type(v) is not int or k.startswith("_")]:
        raise DataError(f"{folder / 'config.json'}: per_layer_config holds {odd[0]!r}, which is no number")
    return numbers


def _described_by_layer(pruned: Pruned) -> tuple[Any, PerLayer]:
    """The pruned model without empty layers, and numbers of every layer that rebuild it, bit for bit."""
    reason = "a model that is built from them computes something else"
    for numbers in per_layer_numbers(pruned):
        model, kept = shortened(pruned.model)
        own = {new: numbers[old] for new, old in enumerate(kept) if old in numbers}
        try:
            if _equal(pruned, model, own):
                return model, own
        except (RuntimeError, ValueError) as error:
            reason = first_line(error)
    raise NotAvailableError(
        f"no numbers of single layers give this model ({reason}): leave head dimensions and the stream whole "
        "(ignore=['*:head_dims', '*:value_dims', '*:stream']), drop attention and MLP of a layer together, or save by "
        "result.save"
    )


@torch.no_grad()
def _equal(pruned: Pruned, model: Any, numbers: PerLayer) -> bool:
    """Whether `model`, and one that is built from its config and numbers, compute what the pruned model does."""
    args, kwargs = pruned.network.captured.example
    with torch.random.fork_rng(devices=[]):
        rebuilt = _built(type(model), model.config, numbers).eval()
    state: Mapping[str, torch.Tensor] = model.state_dict()
    rebuilt.load_state_dict(state, assign=True)
    rebuilt.to(next(iter(state.values())).device)
    with untouched(pruned.model):
        wanted, *others = [_tensors(m(*args, **kwargs)) for m in (pruned.model, model.eval(), rebuilt)]
    return all(torch.equal(a, b) for other in others for a, b in zip(wanted, other, strict=True))


def _built(cls: Any, config: Any, numbers: PerLayer) -> nn.Module:
    return layered_class(cls)(with_layers(config, numbers)) if numbers else cls(config)


def _tensors(output: Any) -> list[torch.Tensor]:
    return [x for x in pytree.tree_leaves(output) if isinstance(x, torch.Tensor)]
