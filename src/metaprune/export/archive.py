"""Save and load a pruned network: safetensors and JSON in one folder, nothing pickled.

    model.safetensors   every parameter and buffer, once
    plan.json           what was kept
    network.json        form, attributes, ties, the model's spec, and the graph (no weights)

A module form is rebuilt from its factory (the spec string it was made from, or one that the caller passes); the
graph form needs nothing but this folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from metaprune.core.arguments import check_arguments
from metaprune.core.errors import ConfigError, DataError, DataMissingError, NotAvailableError, WeightsError
from metaprune.core.files import write_json, write_tensors
from metaprune.core.rng import Rng
from metaprune.export.graph_json import graph_from_json, graph_to_json
from metaprune.surgery.cut import Pruned
from metaprune.surgery.graph_form import place_tensor
from metaprune.surgery.hf_config import set_config
from metaprune.surgery.module_form import set_attributes
from metaprune.surgery.tensors import named_tensors

FORMAT = 1
SAFE_FACTORIES = ("zoo:", "timm:", "torchvision:", "hf:")  # `python:` would run code that a folder names
# options that fetch or run what a folder names
UNSAFE_OPTIONS = {
    "trust_remote_code",
    "code_revision",
    "checkpoint_path",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pickle_module",
    "quantization_config",
    "weights",
}

_KEYS = {"form", "why", "spec", "options", "aliases", "parameters", "attributes", "graph", "inputs"}


def save(pruned: Pruned, folder: str | Path, *, spec: str | None = None, options: dict[str, Any] | None = None) -> Path:
    """Write the archive. `spec`, `options`: how the original is made (`zoo:resnet20`, {"num_classes": 10})."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors, aliases = named_tensors(pruned.model)
    try:
        graph = graph_to_json(pruned.model if pruned.form == "graph" else pruned.as_graph())  # type: ignore[arg-type]
    except NotAvailableError:
        if pruned.form == "graph":
            raise
        graph = None  # a module form needs its factory then
    parameters = {n: t.requires_grad for n, t in tensors.items() if isinstance(t, nn.Parameter)}
    (folder / "network.json").unlink(missing_ok=True)  # written last: a killed save leaves no archive, not a mixed one
    write_tensors(folder / "model.safetensors", tensors)
    write_json(folder / "plan.json", pruned.plan.to_dict())
    described = {
        "format": FORMAT,
        "form": pruned.form,
        "why": pruned.why,
        "error": pruned.error,
        "spec": spec,
        "options": options or {},
        "aliases": aliases,
        "parameters": parameters,
        "attributes": pruned.attributes,
        "graph": graph,
        "config": {"why": pruned.config.why, "changes": pruned.config.changes},
        "inputs": _describe_inputs(*pruned.network.captured.example),
    }
    write_json(folder / "network.json", described)
    return folder


def load(
    folder: str | Path,
    *,
    factory: Callable[[], nn.Module] | None = None,
    form: Literal["auto", "module", "graph"] = "auto",
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Load the saved network in eval mode.

    Args:
        factory: makes the original (unpruned) model; needed for a module form unless it came from a spec string.
        form: `graph` loads a module form as a graph, without its factory.

    Raises:
        DataMissingError: no such folder. DataError: not an archive of metaprune, or of a newer format.
        NotAvailableError: a module form without a factory.
    """
    check_arguments(load, locals())
    folder = Path(folder)
    described = read_archive(folder)
    if form not in ("auto", "module", "graph"):
        raise ConfigError(f"form is auto, module or graph, not {form!r}")
    try:
        tensors = load_file(folder / "model.safetensors", device=str(device))
    except (FileNotFoundError, SafetensorError) as error:
        raise DataError(
            f"{folder / 'model.safetensors'} is missing or damaged ({error}); save the network again"
        ) from error
    tensors = {n: _parameter(t, n, described["parameters"]) for n, t in tensors.items()}
    everything = {**tensors, **{alias: tensors[name] for alias, name in described["aliases"].items()}}
    wanted = described["form"] if form == "auto" else form
    if wanted == "module" and described["form"] == "module":
        return _load_module(described, everything, factory).to(device).eval()
    if wanted == "module":
        raise NotAvailableError(f"{folder} holds a graph form ({described['why']}); load it without form='module'")
    if described["graph"] is None:
        raise NotAvailableError(f"{folder} holds no graph; pass factory=... to load the module form")
    root = nn.Module()
    for name in tensors:
        place_tensor(root, name, tensors[name])
    for alias, name in described["aliases"].items():
        place_tensor(root, alias, tensors[name])
    return graph_from_json(described["graph"], root).to(device).eval()


def read_archive(folder: Path) -> dict[str, Any]:
    """network.json of an archive, checked."""
    path = Path(folder) / "network.json"
    if not path.is_file():
        raise DataMissingError(f"{folder} is no saved network: it has no network.json (result.save(folder) writes one)")
    try:
        described = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}") from error
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise DataError(f"{path} is not in format {FORMAT}, which this version of metaprune reads")
    if missing := sorted(_KEYS - described.keys()):
        raise DataError(f"{path} is damaged: it lacks {', '.join(missing)}")
    return described


def _describe_inputs(args: tuple, kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """Shapes and dtypes of the example inputs; None where they are not plain tensors."""
    if not all(isinstance(x, torch.Tensor) for x in (*args, *kwargs.values())):
        return None

    def describe(x: torch.Tensor) -> dict[str, Any]:
        return {"shape": list(x.shape), "dtype": str(x.dtype).removeprefix("torch.")}

    return {"args": [describe(x) for x in args], "kwargs": {n: describe(x) for n, x in kwargs.items()}}


def example_inputs(folder: str | Path, device: str | torch.device = "cpu") -> tuple[tuple, dict[str, Any]]:
    """RunInputs of the traced shapes (normal floats, zeros for integers), for export and timing."""
    described = read_archive(Path(folder))["inputs"]
    if described is None:
        raise NotAvailableError(
            f"the network of {folder} takes inputs that are not plain tensors; export it from Python"
        )

    def make(d: dict[str, Any]) -> torch.Tensor:
        dtype = getattr(torch, d["dtype"])
        if not dtype.is_floating_point:
            return torch.zeros(d["shape"], dtype=dtype, device=device)
        return torch.randn(d["shape"], generator=Rng(0).torch()).to(dtype=dtype, device=device)

    return tuple(make(d) for d in described["args"]), {n: make(d) for n, d in described["kwargs"].items()}


def _parameter(tensor: torch.Tensor, name: str, parameters: dict[str, bool]) -> torch.Tensor:
    return nn.Parameter(tensor, requires_grad=parameters[name]) if name in parameters else tensor


def _load_module(
    described: dict[str, Any], tensors: dict[str, torch.Tensor], factory: Callable[[], nn.Module] | None
) -> nn.Module:
    if factory is None:
        spec = described["spec"]
        if spec is None or not spec.startswith(SAFE_FACTORIES):
            raise NotAvailableError(
                "this is a module form of your own class: pass factory=lambda: YourModel(...), the unpruned model, "
                "or form='graph', which needs no class"
            )
        unsafe = sorted(set(described["options"]) & UNSAFE_OPTIONS)
        if unsafe:
            raise DataError(f"the archive asks for {', '.join(unsafe)}, which may run code: pass factory=... instead")
        from metaprune.models import create

        model = create(spec, **described["options"])
    else:
        model = factory()
        if not isinstance(model, nn.Module):
            raise ConfigError("factory returns no torch.nn.Module: give a function that makes the original")
    known = {
        n for n, _ in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    }
    if known != set(tensors):
        odd = sorted(known ^ set(tensors))
        raise WeightsError(
            f"the factory's model has other tensors than the saved one: {', '.join(odd[:8])} ({len(odd)} in all)"
        )
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        setattr(owner, leaf, tensor)  # recurrent layers keep a second list of their weights, which this renews
    set_attributes(model, described["attributes"])
    if changes := described.get("config", {}).get("changes"):
        set_config(model, changes)
    return model
