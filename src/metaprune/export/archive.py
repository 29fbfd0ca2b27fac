"""Save and load a pruned network: safetensors and JSON in one folder, nothing pickled.

    model.safetensors   every parameter and buffer, once
    plan.json           what was kept
    network.json        form, attributes, ties, how the original is made, the graph (no weights), and digests

A module form is rebuilt from its factory (zoo, timm, torchvision, transformers, or one that the caller passes); the
graph form needs nothing but this folder. Loading runs no code of the folder and imports nothing that it names.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from metaprune.core.arguments import check_arguments
from metaprune.core.errors import (
    ConfigError,
    DataError,
    DataMissingError,
    MetapruneError,
    NotAvailableError,
    WeightsError,
    first_line,
)
from metaprune.core.files import part_of, tensors_digest, whole_files, write_json, write_sealed, write_tensors
from metaprune.core.read import damaged, read_json, read_tensors, require_seal, understood
from metaprune.core.tensors import named_tensors
from metaprune.export.factories import build, describe_transformers, portable
from metaprune.export.fetch import folder_of
from metaprune.export.graph_json import graph_from_json, graph_to_json
from metaprune.export.hf_folder import from_pretrained
from metaprune.network import Network
from metaprune.surgery.cut import Pruned, cut
from metaprune.surgery.dropped import drop_modules, modules_dropped_in
from metaprune.surgery.graph_form import graph_form, place_tensor
from metaprune.surgery.hf_config import set_config
from metaprune.surgery.module_form import set_attributes
from metaprune.values import Plan

FORMAT = 1
NETWORK, MODEL, PLAN = "network.json", "model.safetensors", "plan.json"
REMEDY = "save the network again"

_KEYS = {
    "form": str,
    "why": str,
    "spec": (str, type(None)),
    "options": dict,
    "aliases": dict,
    "parameters": dict,
    "attributes": dict,
    "graph": (dict, type(None)),
    "inputs": (dict, type(None)),
}


def save(
    pruned: Pruned,
    folder: str | Path,
    *,
    spec: str | None = None,
    options: dict[str, Any] | None = None,
    record: Mapping[str, Any] | None = None,
) -> Path:
    """Write the archive; an older one there is replaced as a whole, or stays.

    Args:
        spec, options: how the original is made (`zoo:resnet20`, {"num_classes": 10}).
        record: of `prune`, kept beside it as record.json.

    Raises:
        NotAvailableError: it could not be loaded again; says what cannot be saved.
        WriteError: a full disk, or no rights; what was there is whole.
    """
    folder = Path(folder)
    described, tensors = describe(pruned, spec=spec, options=options)
    require_loadable(described, tensors, pruned)
    with whole_files(folder) as draft:
        write_tensors(draft / MODEL, tensors)
        write_json(draft / PLAN, pruned.plan.to_dict())
        write_sealed(draft / NETWORK, {**described, "tensors_digest": tensors_digest(tensors)})
        if record is not None:
            write_json(draft / "record.json", record)
    return folder


def describe(
    pruned: Pruned, *, spec: str | None = None, options: dict[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What network.json holds, and the tensors.

    Raises:
        NotAvailableError: a graph form that JSON cannot hold.
    """
    tensors, aliases = named_tensors(pruned.model)
    graph, without = None, None
    try:
        graph = graph_to_json(pruned.model if pruned.form == "graph" else pruned.as_graph())  # type: ignore[arg-type]
    except NotAvailableError as error:
        if pruned.form == "graph":
            raise
        without = str(error)  # a module form needs its factory then; said when it is loaded as a graph
        warnings.warn(f"the archive can be loaded as the model's own class only: {without}", stacklevel=3)
    spec, options = portable(spec, dict(options or {}), pruned.network.model)
    described = {
        "format": FORMAT,
        "form": pruned.form,
        "why": pruned.why,
        "error": pruned.error,
        "spec": spec,
        "options": options,
        "transformers": describe_transformers(pruned.network.model) if pruned.form == "module" else None,
        "aliases": aliases,
        "parameters": {n: t.requires_grad for n, t in tensors.items() if isinstance(t, nn.Parameter)},
        "attributes": pruned.attributes,
        "dropped": modules_dropped_in(pruned.model) if pruned.form == "module" else {},
        "graph": graph,
        "without_graph": without,
        "config": {"why": pruned.config.why, "changes": pruned.config.changes},
        "inputs": _describe_inputs(*pruned.network.captured.example),
    }
    return described, tensors


def require_savable(network: Network, form: str) -> None:
    """Say before anything long begins what `save` would refuse after it.

    A graph that JSON cannot hold does not matter where the module form is made; a cut of every group to its half shows
    whether it is.

    Raises:
        NotAvailableError: what the run would make cannot be saved.
    """
    try:
        graph_to_json(graph_form(network, network.survivors(Plan()), network.tensors))
    except NotAvailableError:
        if form == "graph":
            raise
        halves = Plan.of(network.space, [np.arange(g.width) < max(1, g.width // 2) for g in network.space])
        if form == "auto" and cut(network, halves).form == "graph":
            raise


def require_loadable(described: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], pruned: Pruned) -> None:
    """Build again what was described, without weights, and compare names and shapes.

    Raises:
        NotAvailableError: it differs, so that the archive would be of no use.
    """
    try:
        plain = json.loads(json.dumps(described))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"options of the model do not go into a file ({first_line(error)}): give plain data"
        ) from error
    if pruned.form == "module":
        _warn_of_factory(plain, tensors)
    if plain["graph"] is None:
        return
    shapes = {n: torch.empty_like(t, device="meta") for n, t in tensors.items()}
    try:
        model = _graph_model(plain, {n: _parameter(t, n, plain["parameters"]) for n, t in shapes.items()})
    except MetapruneError as error:
        raise NotAvailableError(f"the network cannot be saved so that it loads again: {error}") from error
    there = {n: tuple(t.shape) for n, t in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items()}
    odd = [n for n, shape in there.items() if n in tensors and shape != tuple(tensors[n].shape)]
    if odd:
        raise NotAvailableError(
            f"the network cannot be saved so that it loads again: {', '.join(odd[:4])} would have other shapes"
        )


def _warn_of_factory(described: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Make the model of a module form as `load` would, and say so if that does not work: its graph stands beside it."""
    elements = sum(t.numel() for t in tensors.values())
    reason = None
    try:
        try:
            with torch.device("meta"):
                model = build(described, elements)
        except DataError:  # builders that read values need real tensors
            if elements > _LARGEST_TRIAL:
                return
            model = build(described, elements)
        _drop_modules(model, described, tensors)
        if odd := sorted(_names(model) ^ {*tensors, *described["aliases"]}):
            reason = f"{described['spec']} makes other tensors: {', '.join(odd[:4])}"
    except NotAvailableError:
        return  # a class of the user's own
    except MetapruneError as error:
        reason = str(error)
    if reason is not None:
        warnings.warn(
            f"the archive loads with factory=... or form='graph' only: {reason}. Give `spec` and `options` of the "
            "unpruned model",
            stacklevel=4,
        )


_LARGEST_TRIAL = 10**8  # elements


def _names(model: nn.Module) -> set[str]:
    pairs = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {n for n, _ in pairs}


def load(
    folder: str | Path,
    *,
    factory: Callable[[], nn.Module] | None = None,
    form: Literal["auto", "module", "graph"] = "auto",
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Load the saved network in eval mode: an archive of metaprune, or a folder of `metaprune.hf.save_pretrained`.

    Args:
        folder: a path, or OWNER/NAME on the Hugging Face Hub where no such path is; tensors and JSON are fetched.
        factory: makes the original (unpruned) model; needed for a module form unless it came from a spec string.
        form: `graph` loads a module form as a graph, without its factory.
        device: where the network goes.

    Raises:
        DataMissingError: no such folder. DataError: not an archive of metaprune, or of a newer format.
        NotAvailableError: a module form without a factory.
    """
    check_arguments(load, locals())
    folder = folder_of(folder)
    if form not in ("auto", "module", "graph"):
        raise ConfigError(f"form is auto, module or graph, not {form!r}")
    if form != "graph" and not part_of(folder, NETWORK).exists() and (folder / "config.json").is_file():
        return from_pretrained(folder).to(device)
    described = read_archive(folder)
    tensors = read_tensors(part_of(folder, MODEL), device=device, remedy=REMEDY)
    try:
        model = _model(folder, described, tensors, factory, form)
    except DataError as error:
        if str(folder) in str(error):
            raise
        remedy = "" if REMEDY in str(error) or "factory" in str(error) else f"; {REMEDY}"
        raise type(error)(f"{part_of(folder, NETWORK)}: {error}{remedy}") from error
    # after the checks that name what is wrong: a digest keeps no one from writing another
    require_seal(part_of(folder, NETWORK), described, REMEDY)
    wanted = described.get("tensors_digest")  # archives of early versions have none
    if wanted is not None and wanted != tensors_digest(tensors):
        damaged(part_of(folder, MODEL), f"its tensors are not those that {NETWORK} was saved with", REMEDY)
    return model.to(device).eval()


def _model(
    folder: Path,
    described: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    factory: Callable[[], nn.Module] | None,
    form: str,
) -> nn.Module:
    aliases = described["aliases"]
    if odd := sorted(n for n in aliases.values() if n not in tensors):
        damaged(part_of(folder, MODEL), f"it lacks {', '.join(odd[:4])}", REMEDY)
    with understood(str(part_of(folder, MODEL)), REMEDY):
        named = {n: _parameter(t, n, described["parameters"]) for n, t in tensors.items()}
    wanted = described["form"] if form == "auto" else form
    if wanted == "module" and described["form"] == "module":
        return _load_module(described, {**named, **{a: named[n] for a, n in aliases.items()}}, factory)
    if wanted == "module":
        raise NotAvailableError(f"{folder} holds a graph form ({described['why']}); load it without form='module'")
    if described["graph"] is None:
        reason = described.get("without_graph")
        raise NotAvailableError(
            f"{folder} holds no graph{f' ({reason})' if reason else ''}; pass factory=... to load the module form"
        )
    return _graph_model(described, named)


def _graph_model(described: dict[str, Any], named: Mapping[str, torch.Tensor]) -> nn.Module:
    root = nn.Module()
    pairs = [*named.items(), *((alias, named[name]) for alias, name in described["aliases"].items())]
    for path, tensor in pairs:
        try:
            place_tensor(root, path, tensor)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"the archive holds a tensor {path!r}, which no module can hold: {REMEDY}") from error
    return graph_from_json(described["graph"], root)


def read_archive(folder: Path) -> dict[str, Any]:
    """network.json of an archive, its keys and their types checked."""
    path = part_of(Path(folder), NETWORK)
    if not path.is_file():
        raise DataMissingError(f"{folder} is no saved network: it has no network.json (result.save(folder) writes one)")
    described = read_json(path, remedy=REMEDY)
    if described.get("format") != FORMAT:
        raise DataError(f"{path} is not in format {FORMAT}, which this version of metaprune reads: {REMEDY}")
    if missing := sorted(_KEYS.keys() - described.keys()):
        raise DataError(f"{path} is damaged: it lacks {', '.join(missing)}; {REMEDY}")
    for key, kind in _KEYS.items():
        if not isinstance(described[key], kind):
            damaged(path, f"{key} is {str(described[key])[:40]!r}", REMEDY)
    if described["form"] not in ("module", "graph"):
        damaged(path, f"form is {described['form']!r}", REMEDY)
    for name, text in described["aliases"].items():
        if not isinstance(text, str):
            damaged(path, f"alias {name!r} is {str(text)[:40]!r}", REMEDY)
    if not all(isinstance(flag, bool) for flag in described["parameters"].values()):
        damaged(path, "parameters are not flags", REMEDY)
    return described


def _describe_inputs(args: tuple, kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """Shapes and dtypes of the example inputs; None where they are not plain tensors."""
    if not all(isinstance(x, torch.Tensor) for x in (*args, *kwargs.values())):
        return None

    def describe(x: torch.Tensor) -> dict[str, Any]:
        return {"shape": list(x.shape), "dtype": str(x.dtype).removeprefix("torch.")}

    return {"args": [describe(x) for x in args], "kwargs": {n: describe(x) for n, x in kwargs.items()}}


def _parameter(tensor: torch.Tensor, name: str, parameters: dict[str, bool]) -> torch.Tensor:
    return nn.Parameter(tensor, requires_grad=parameters[name]) if name in parameters else tensor


def _load_module(
    described: dict[str, Any], tensors: dict[str, torch.Tensor], factory: Callable[[], nn.Module] | None
) -> nn.Module:
    if factory is None:
        model = build(described, sum(t.numel() for t in tensors.values()))
    else:
        model = factory()
        if not isinstance(model, nn.Module):
            raise ConfigError("factory returns no torch.nn.Module: give a function that makes the original")
    _drop_modules(model, described, tensors)
    known = _names(model)
    if known != set(tensors):
        odd = sorted(known ^ set(tensors))
        raise WeightsError(
            f"the factory's model has other tensors than the saved one: {', '.join(odd[:8])} ({len(odd)} in all)"
        )
    with understood("the archive", REMEDY):
        for name, tensor in tensors.items():
            path, _, leaf = name.rpartition(".")
            owner = model.get_submodule(path)
            setattr(owner, leaf, tensor)  # recurrent layers keep a second list of their weights, which this renews
        _require_attributes(model, described["attributes"])
        set_attributes(model, described["attributes"])
        if changes := (described.get("config") or {}).get("changes"):
            for key, value in changes.items():
                if not _CONFIG_KEY.fullmatch(key) or not _is_size(value):
                    raise DataError(
                        f"the archive sets {key!r} of a config to {value!r}, which metaprune does not: {REMEDY}"
                    )
            try:
                set_config(model, changes)
            except (AttributeError, IndexError, TypeError, KeyError) as error:
                raise DataError(f"the archive changes a config that the model has not ({first_line(error)})") from error
    return model


def _drop_modules(model: nn.Module, described: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Replace what empty branches left idle, as the archive says."""
    dropped = described.get("dropped") or {}  # archives of early versions have none
    modules = dict(model.named_modules()).keys() - {""}
    for path, returns in dropped.items() if isinstance(dropped, dict) else [("", dropped)]:
        if path not in modules or not _are_sizes(returns) or len(returns) != 3 or max(returns) > 64:
            raise DataError(f"the archive drops the module {path!r} ({str(returns)[:40]}), which it cannot: {REMEDY}")
    drop_modules(model, dropped, {n: nn.Parameter(t) for n, t in tensors.items() if n.endswith(".constant")})


_CONFIG_KEY = re.compile(r"[a-z]\w*(\.([a-z]\w*|\d{1,6}))*", re.ASCII)


def _require_attributes(model: nn.Module, attributes: Mapping[str, Any]) -> None:
    """Attributes that the cut follows are sizes that the module has; a file sets no others."""
    for path, values in attributes.items():
        try:
            held = vars(model.get_submodule(path))
            fits = all(
                _is_size(value) if type(held[n]) is int else _are_sizes(value) and _are_sizes(held[n])
                for n, value in values.items()
            )
        except (AttributeError, KeyError, TypeError):
            fits = False
        if not fits:
            raise DataError(f"the archive sets attributes of {path!r} ({str(values)[:80]}) that are no sizes: {REMEDY}")


def _is_size(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**40


def _are_sizes(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_is_size, value))
