"""Importing what is not a dependency: optional packages, and users' own functions by `module:function`."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metaprune.core.errors import ConfigError, MissingDependencyError, closest

_shim_library: Any = None  # torch drops the operators when this reference dies


def import_python_target(target: str) -> Callable[..., Any]:
    """Import the callable that `module:function` names.

    Raises:
        ConfigError: not of that form, the module does not import, or has no such callable.
    """
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"python:{target} is no function: write python:module:function")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"python:{target}: module {module_name!r} does not import ({error}): install it, or put it on PYTHONPATH."
        ) from error
    imported = getattr(module, attribute, None)
    if not callable(imported):
        raise ConfigError(
            f"python:{target}: {module_name} has no callable {attribute!r}.{closest(attribute, dir(module))}"
        )
    return imported


def allow_torchvision_import() -> None:
    """Make `import torchvision` work where its build is for CUDA and PyTorch's is not.

    Such a pair lacks torchvision's compiled operators, and importing it (and so timm) fails on their names. Declaring
    the two names that the import asks for is enough for networks; detection operators stay unavailable. Does nothing
    for a matching pair, or after torchvision was imported.
    """
    global _shim_library
    import torch

    spec = importlib.util.find_spec("torchvision")
    if _shim_library is not None or torch.version.cuda is not None or spec is None or spec.origin is None:
        return
    libraries = Path(spec.origin).parent.glob("_C*.so")
    if hasattr(torch.ops.torchvision, "nms") or not any(b"libtorch_cuda" in p.read_bytes() for p in libraries):
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _shim_library = library


def import_optional(package: str, extra: str) -> Any:
    """Import an optional package, or a module of one.

    Raises:
        MissingDependencyError: it is not installed; names the extra.
    """
    if importlib.util.find_spec(package.partition(".")[0]) is None:
        raise MissingDependencyError(f"{package} is not installed: run `pip install 'metaprune[{extra}]'`.")
    allow_torchvision_import()
    try:
        return importlib.import_module(package)
    except (ImportError, RuntimeError) as error:
        import torch

        raise MissingDependencyError(
            f"{package} is installed but does not import ({error}): reinstall it to match torch {torch.__version__}."
        ) from error
