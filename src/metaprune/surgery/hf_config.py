"""The config of a transformers model after a cut: which of its numbers must change so that it rebuilds the model.

No table of architectures: a number of the config that held an old width is a candidate for the new one, and a
candidate is tried by building the model's own class on the meta device. What fits in shape must also compute the same,
bit for bit, with the pruned weights loaded; else the config stays as it is, and the reason is given.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from metaprune.core.errors import ConfigError, first_line
from metaprune.core.side_effects import copy_model
from metaprune.surgery.module_form import set_attributes
from metaprune.surgery.verify import TOLERANCE, Proof, in_float64, relative_error

Shape = tuple[int, ...]
Shapes = Mapping[str, tuple[Shape, Shape]]  # parameter -> (shape before, shape after)
Changes = dict[str, int]  # dotted place in the config (`hidden_sizes.0`) -> new number
Option = tuple[str, int]

TRIES = 200  # builds on the meta device, each some milliseconds
TOGETHER = 4  # numbers that are changed together without a hint from the shapes


@dataclass(frozen=True)
class ConfigFit:
    """What became of the config: a sentence for the user ('' if the model has none), and the numbers that changed."""

    why: str = ""
    changes: Mapping[str, int] | None = None  # None: the config does not describe the pruned model


def fit_config(model: nn.Module, shapes: Shapes, attributes: dict[str, dict[str, Any]], proof: Proof) -> ConfigFit:
    """Update the config of a pruned transformers model in place, or leave it as it is and say why.

    Args:
        model: the module form, equal to the sliced graph.
        attributes: module path -> attribute -> value; gets those that the config gives otherwise.
    """
    if not has_config(model):
        return ConfigFit()
    search = _Search(model, shapes, proof)
    with torch.random.fork_rng(devices=[]):
        changes = search.run()
    if changes is None:
        return ConfigFit(
            f"its config cannot express these widths ({search.reason}): save by result.save, or "
            "by metaprune.hf.save_pretrained; the model's own save_pretrained would write a folder that does not load"
        )
    old = {key: _read(model.config, key) for key in changes}
    changed = ", ".join(f"{key} {old[key]} -> {value}" for key, value in changes.items()) or "no number changes"
    set_config(model, changes)
    for path, values in search.adopted.items():
        attributes.setdefault(path, {}).update(values)
    set_attributes(model, search.adopted)
    return ConfigFit(f"its config expresses these widths ({changed}): save_pretrained works", changes)


def has_config(model: nn.Module) -> bool:
    """Tell whether a model is saved with a config, as those of transformers are."""
    return hasattr(getattr(model, "config", None), "to_dict") and hasattr(model, "save_pretrained")


def built_shapes(model: nn.Module, changes: Mapping[str, int]) -> dict[str, Shape]:
    """Build the model's class from its config with some numbers changed, on the meta device; shapes of its state dict.

    Raises what the class raises.
    """
    with torch.device("meta"):
        built = type(model)(_changed_config(model, changes))
    return {name: tuple(t.shape) for name, t in built.state_dict().items()}


def _changed_config(model: nn.Module, changes: Mapping[str, int]) -> Any:
    config = copy.deepcopy(model.config)
    _write(config, changes)
    return config


def set_config(model: nn.Module, changes: Mapping[str, int]) -> None:
    """Write numbers into the config, and into copies of it that submodules hold."""
    for config in held_configs(model):
        _write(config, changes)


def held_configs(model: nn.Module) -> list[Any]:
    """List the config of a model, and copies of it that submodules hold."""
    root = model.config
    held = {id(c): c for c in (getattr(m, "config", None) for m in model.modules()) if type(c) is type(root)}
    return list(held.values())


def _write(config: Any, changes: Mapping[str, int]) -> None:
    for key, value in changes.items():
        *parents, leaf = key.split(".")
        owner = config
        for part in parents[: -1 if leaf.isdigit() else None]:
            owner = getattr(owner, part)
        known = _read(config, key)
        if type(value) is not int or not (known is None or type(known) is int):
            raise ConfigError(f"config.{key} is {known!r}: no number that {value!r} could replace")
        if leaf.isdigit():
            numbers = list(getattr(owner, parents[-1]))
            numbers[int(leaf)] = value
            setattr(owner, parents[-1], type(getattr(owner, parents[-1]))(numbers))
        else:
            setattr(owner, leaf, value)


def _read(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[int(part)] if part.isdigit() else getattr(config, part)
    return config


def whole_numbers(config: Any, prefix: str = "") -> Iterator[tuple[str, int | None]]:
    """Every whole number (or None in its place) of a config: in lists and in nested configs too."""
    for name in config.to_dict():
        value = getattr(config, name, "")
        if name.startswith("_") or name.endswith("_token_id"):
            continue
        if value is None or type(value) is int:
            yield prefix + name, value
        elif isinstance(value, (list, tuple)):
            yield from ((f"{prefix}{name}.{i}", v) for i, v in enumerate(value) if type(v) is int)
        elif hasattr(value, "to_dict"):
            yield from whole_numbers(value, f"{prefix}{name}.")


class _Search:
    """Bounded search for numbers of the config that give the pruned model."""

    def __init__(self, model: nn.Module, shapes: Shapes, proof: Proof):
        self.model, self.proof = model, proof
        self.wanted = {name: tuple(t.shape) for name, t in model.state_dict().items()}
        pairs = [(a, b) for before, after in shapes.values() for a, b in zip(before, after, strict=True)]
        self.pairs = list(dict.fromkeys((a, b) for a, b in pairs if a != b))
        self.sizes = list(dict.fromkeys(b for _, b in sorted(pairs, key=lambda p: p[0] == p[1])))
        self.tries = 0
        self.uneven = self.reason = ""
        self.adopted: dict[str, dict[str, Any]] = {}
        self.nearest = len(self.wanted) + 1

    def run(self) -> Changes | None:
        try:
            self.original = self._shapes({})
        except Exception as error:
            self.reason = f"{type(self.model).__name__} cannot be built from it: {type(error).__name__}: {error}"
            return None
        if self.original.keys() != self.wanted.keys():
            self.reason = "a model built from it has other parameters than this one"
            return None
        if self._fits({}):
            return {}
        self.uneven = _uneven(self.original, self.wanted)
        options = self._ranked()
        for order in (options, options[::-1]):  # heads or head dimension: both may explain one width
            changes = self._from(order)
            if changes is not None or self.uneven:
                break
        if changes is None and self.uneven:
            self.reason = f"uneven layers: {self.uneven}"
        return changes

    def _from(self, options: list[Option]) -> Changes | None:
        """Commit all that only brings sizes nearer, then try the other options together, few at a time."""
        changes: Changes = {}
        for option in options:
            if option[0] not in changes and self._gain(changes, option):
                changes[option[0]] = option[1]
        if changes and self._fits(changes):
            return changes
        rest = [o for o in options if o[0] not in changes]
        for count in range(1, 1 if self.uneven else TOGETHER + 1):
            for chosen in itertools.combinations(rest, count):
                if len({key for key, _ in chosen}) < count:
                    continue
                if self.tries >= TRIES:
                    return None
                if self._fits({**changes, **dict(chosen)}):
                    return {**changes, **dict(chosen)}
        return None

    def _options(self) -> list[Option]:
        """(place, number): first where the config holds an old width, then its shares (heads of a width)."""
        exact, shared, unset = [], [], []
        for key, value in whole_numbers(self.model.config):
            if value is None:
                unset += [(key, size) for size in self.sizes]
            elif value > 1:
                exact += [(key, b) for a, b in self.pairs if a == value]
                shares = [(a, value * b) for a, b in self.pairs if a % value == 0]
                shared += [(key, share // a) for a, share in shares if share % a == 0 and share > 0]
        return list(dict.fromkeys(exact + ([] if self.uneven else shared) + unset))

    def _ranked(self) -> list[Option]:
        """Options that change something alone, or fail alone (a width that the heads do not divide), before idle ones.

        Numbers that change which parameters exist (a count of layers) are dropped, and those that are not set and set
        nothing. One that is not set may be idle at the size that it stands for now.
        """
        ranks: list[list[Option]] = [[], [], []]
        for option in self._options()[: TRIES // 2]:
            try:
                built = self._shapes(dict([option]))
            except Exception:
                ranks[1].append(option)
                continue
            if built.keys() != self.wanted.keys():
                continue
            if built != self.original:
                ranks[0].append(option)
            else:
                ranks[2].append(option)
        at_work = {key for key, _ in ranks[0]}
        ranks[2] = [o for o in ranks[2] if o[0] in at_work or _read(self.model.config, o[0]) is not None]
        return [option for rank in ranks for option in rank]

    def _gain(self, changes: Changes, option: Option) -> bool:
        """Whether an option moves sizes to what is wanted, and none away."""
        try:
            before, after = self._shapes(changes), self._shapes({**changes, option[0]: option[1]})
        except Exception:
            return False
        if before == after or after.keys() != self.wanted.keys():
            return False
        triples = [(b, a, w) for n in before for b, a, w in zip(before[n], after[n], self.wanted[n], strict=False)]
        return all(a in (b, w) for b, a, w in triples)

    def _shapes(self, changes: Changes) -> dict[str, Shape]:
        self.tries += 1
        return built_shapes(self.model, changes)

    def _fits(self, changes: Changes) -> bool:
        try:
            built = self._shapes(changes)
        except Exception:
            return False
        wrong = [n for n in self.wanted if built.get(n) != self.wanted[n]]
        if wrong:
            self._note(len(wrong), f"no numbers in it give {wrong[0]} {self.wanted[wrong[0]]}")
        return not wrong and built.keys() == self.wanted.keys() and self._computes_the_same(changes)

    def _note(self, distance: int, reason: str) -> None:
        """Keep the reason of the attempt that came nearest."""
        if distance < self.nearest:
            self.nearest, self.reason = distance, reason

    @torch.no_grad()
    def _computes_the_same(self, changes: Changes) -> bool:
        """Rebuilt from the config it equals the pruned model bit for bit, which reads the new config as it runs."""
        args, kwargs = self.proof.network.captured.example
        adapted = copy_model(self.model).eval()
        state = self.model.state_dict()
        try:
            config = _changed_config(self.model, changes)
            getattr(config, "validate", lambda: None)()  # as save_pretrained does
            set_config(adapted, changes)
            rebuilt = type(self.model)(config).eval()
            rebuilt.load_state_dict(state, strict=True, assign=True)
            adopted = _other_numbers(adapted, rebuilt)
            set_attributes(adapted, adopted)
            rebuilt.to(next(iter(state.values())).device)
            error = relative_error(rebuilt(*args, **kwargs), adapted(*args, **kwargs))
            proved = self.proof.probe_error(in_float64(adapted))
        except Exception as failure:
            self._note(0, f"a model built from it does not run: {type(failure).__name__}: {first_line(failure)}")
            return False
        if error == 0 and proved <= TOLERANCE:
            self.adopted = adopted
            return True
        self._note(0, f"a model built from it computes something else, relative error {max(error, proved):.1e}")
        return False


def _other_numbers(model: nn.Module, rebuilt: nn.Module) -> dict[str, dict[str, Any]]:
    """Whole numbers that the constructor sets otherwise than the cut did: two may be right (heads of one group)."""
    numbers: dict[str, dict[str, Any]] = {}
    for path, module in model.named_modules():
        attributes = vars(rebuilt.get_submodule(path))
        for name, value in vars(module).items():
            if type(value) is int and type(attributes.get(name)) is int and attributes[name] != value:
                numbers.setdefault(path, {})[name] = attributes[name]
    return numbers


def _uneven(before: Mapping[str, Shape], after: Mapping[str, Shape]) -> str:
    """Layers that differ in their number alone, had one width, and have several: the first such case, in words."""
    seen: dict[tuple, tuple[str, int]] = {}
    for name in before:
        for dim, (a, b) in enumerate(zip(before[name], after[name], strict=True)):
            key = (re.sub(r"\b\d+\b", "#", name), dim, a)
            first, width = seen.setdefault(key, (name, b))
            if width != b:
                return f"{first} {a} -> {width}, {name} {a} -> {b}"
    return ""
