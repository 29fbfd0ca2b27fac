"""Uneven layers in the config of a transformers model: `per_layer_config`, a library's own spelling since 5.23.

Its classes do not read it yet. `layered_class` makes one that does: layers come from models of their own configs.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import nn

from metaprune.core.errors import NotAvailableError
from metaprune.core.side_effects import copy_model
from metaprune.surgery.cut import Pruned
from metaprune.surgery.hf_config import Shape, built_shapes, has_config, held_configs, set_config
from metaprune.surgery.keep_config import Dim, numbers_of_dims

PerLayer = dict[int, dict[str, int]]  # layer -> numbers of the config that differ there
_MOST = 64  # combinations of numbers that are looked at for a layer


def layers_of(model: nn.Module) -> str:
    """Path of the one list of layers that the config counts.

    Raises:
        NotAvailableError: there is none, or several (an encoder and a decoder).
    """
    count = getattr(model.config, "num_hidden_layers", None)
    paths = [p for p, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if len(paths) != 1:
        found = "no list" if not paths else f"{len(paths)} lists"
        raise NotAvailableError(f"{type(model).__name__} has {found} of num_hidden_layers={count} layers")
    return paths[0]


def shortened(model: nn.Module) -> tuple[nn.Module, list[int]]:
    """Copy a module form without the layers of which nothing is left; also the numbers of those that stay.

    The config counts them, and its lists with an entry per layer follow. Where all layers stay, the model is the same.
    Whether it computes the same is the caller's to check.

    Raises:
        NotAvailableError: there is not one list of layers.
    """
    path = layers_of(model)
    layers = [*model.get_submodule(path).children()]
    kept = [i for i, layer in enumerate(layers) if next(layer.parameters(), None) is not None]
    if len(kept) == len(layers):
        return model, kept
    short: Any = copy_model(model)
    short.set_submodule(path, nn.ModuleList([short.get_submodule(f"{path}.{i}") for i in kept]))
    set_config(short, {"num_hidden_layers": len(kept)})
    for config in held_configs(short):
        for name, value in config.to_dict().items():
            if "layer" in name and isinstance(value, list) and len(value) == len(layers):  # no list of token ids
                setattr(config, name, [value[i] for i in kept])
    return short, kept


def layered_class(cls: Any) -> Any:
    """Make a subclass of a transformers class that builds every layer from its own config."""

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        cls.__init__(self, whole_config(config), *args, **kwargs)
        layers = self.get_submodule(layers_of(self))
        made: dict[str, Any] = {}
        for i, own in enumerate(config.per_layer_config):
            key = str(sorted(numbers_at(config, i).items()))
            donor = made.setdefault(key, cls(own, *args, **kwargs)) if numbers_at(config, i) else None
            if donor is not None:
                layers[i] = copy.deepcopy(donor.get_submodule(layers_of(donor))[i])
        self.config = config

    return type(cls.__name__, (cls,), {"__init__": __init__, "__module__": cls.__module__})


def numbers_at(config: Any, layer: int) -> dict[str, int]:
    """Read what a layer's config says otherwise than the whole model's."""
    return dict(config._heterogeneity_spec.per_layer_overrides.get(layer, {}))


def whole_config(config: Any) -> Any:
    """Copy a config without what it says of single layers."""
    plain = copy.deepcopy(config)
    plain.per_layer_config = None
    return plain


def with_layers(config: Any, numbers: PerLayer) -> Any:
    """Copy a config with numbers of single layers; its whole numbers may still be read, as the classes do.

    Raises:
        NotAvailableError: a version of transformers without `per_layer_config`.
    """
    if not hasattr(type(config), "per_layer_config"):
        raise NotAvailableError("this version of transformers has no per_layer_config: take 5.23 or newer")
    layered = copy.deepcopy(config)
    layered.per_layer_config = {i: dict(own) for i, own in numbers.items()}
    layered.allow_global_per_layer_attribute_access = True
    return layered


def per_layer_numbers(pruned: Pruned) -> Iterator[PerLayer]:
    """Yield numbers for every layer that give the shapes of a module form; heads first, then head dimensions.

    Raises:
        NotAvailableError: the model has no config, not one list of layers, or shapes that no numbers of a layer give.
    """
    network, model = pruned.network, pruned.model
    if pruned.form != "module" or not has_config(model):
        raise NotAvailableError("only a transformers model in module form has a config: prune with keep_module=True")
    path = layers_of(model)
    set_by = numbers_of_dims(network)
    wanted = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    before = built_shapes(network.model, {})
    if left := sorted(wanted.keys() - before.keys()):
        added = left[0] in network.tensors
        what = "is not of a model that is built from the config" if added else "is left of a branch that was dropped"
        raise NotAvailableError(f"{left[0]} {what}, which no config says: result.save")
    outside = {n for (p, _), numbers in set_by.items() if not p.startswith(f"{path}.") for n in numbers}
    if odd := [n for n in wanted if not n.startswith(f"{path}.") and wanted[n] != before[n]]:
        raise NotAvailableError(f"{odd[0]} changed, which is in no layer: leave that width whole, or give keep_config")
    choices = []
    config: Any = model.config
    for i in range(config.num_hidden_layers):
        mine = re.compile(rf"{re.escape(path)}\.{i}\.")
        dims = {d: tuple(n for n in ns if n not in outside) for d, ns in set_by.items() if mine.match(d[0])}
        choices.append(list(_choices(model.config, {n for n in wanted if mine.match(n)}, dims, before, wanted)))
    yield from ({i: own for i, own in enumerate(c) if own} for c in zip(*choices, strict=False))


def _choices(
    config: Any,
    names: Collection[str],
    dims: Mapping[Dim, Collection[str]],
    before: Mapping[str, Shape],
    wanted: Mapping[str, Shape],
) -> Iterator[dict[str, int]]:
    """Numbers of one layer that give its shapes, where a dimension is the product of the numbers that set it."""
    changed = [(n, d) for n in names for d, (a, b) in enumerate(zip(before[n], wanted[n], strict=True)) if a != b]
    options: dict[str, set[int]] = defaultdict(set)
    now: dict[str, int] = {}
    for name, d in changed:
        for key in dims.get((name, d), ()):
            now[key] = getattr(config, key) or before[name][d]  # one that is not set stands for the size
            options[key] |= {now[key], now[key] * wanted[name][d] // before[name][d]}
    found = []
    for values in itertools.islice(itertools.product(*map(sorted, options.values())), _MOST):
        own = dict(zip(options, values, strict=True))
        ratio = {key: value / now[key] for key, value in own.items()}
        sizes = ((n, d, before[n][d], wanted[n][d]) for n in names for d in range(len(wanted[n])))
        if all(abs(a * _product(ratio, dims.get((n, d), ())) - b) < 1e-6 for n, d, a, b in sizes):
            found.append({key: value for key, value in own.items() if value != now[key]})
    if not found:
        name = next((n for n, _ in changed), "")
        raise NotAvailableError(f"no numbers of a layer give {name} {wanted.get(name)}")
    yield from sorted(found, key=lambda own: ("head_dim" in own, -len(own)))


def _product(ratio: Mapping[str, float], keys: Collection[str]) -> float:
    result = 1.0
    for key in keys:
        result *= ratio.get(key, 1.0)
    return result
