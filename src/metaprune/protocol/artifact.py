"""What meta-training leaves behind: tensors in safetensors, the rest in JSON; nothing pickled."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from metaprune.core.errors import ConfigError
from metaprune.core.files import write_json, write_tensors
from metaprune.train.processes import by_main_process

TENSORS, INFO = "artifact.safetensors", "artifact.json"


@dataclass(frozen=True, eq=False)
class Artifact:
    """method: whose it is. tensors: by name. info: JSON-able, with the options that made it and the space's digest."""

    method: str
    tensors: Mapping[str, torch.Tensor]
    info: Mapping[str, Any] = field(default_factory=dict)

    def save(self, folder: str | Path) -> Path:
        """Write both files; the JSON last, it marks the artifact as whole."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / INFO).unlink(missing_ok=True)
        write_tensors(folder / TENSORS, self.tensors)
        write_json(folder / INFO, {"method": self.method, **self.info})
        return folder

    @classmethod
    def load(cls, folder: str | Path, method: str) -> Artifact:
        """Raises ConfigError for a folder without an artifact, or with another method's."""
        folder = Path(folder)
        if not (folder / INFO).is_file():
            raise ConfigError(f"{folder} holds no artifact of {method}: make one with `metaprune fit {method} RECIPE`")
        try:
            info = json.loads((folder / INFO).read_text())
            tensors = load_file(folder / TENSORS)
        except (json.JSONDecodeError, SafetensorError, OSError) as error:
            raise ConfigError(f"the artifact in {folder} cannot be read ({error}); fit it again") from error
        made_by = info.pop("method", None)
        if made_by != method:
            raise ConfigError(f"the artifact in {folder} is of method {made_by!r}, not of {method!r}")
        return cls(method, tensors, info)

    def require(self, **expected: Any) -> None:
        """Raises ConfigError unless the info agrees."""
        for key, value in expected.items():
            if self.info.get(key) != value:
                raise ConfigError(
                    f"the artifact was fitted with another {key.replace('_', ' ')} ({self.info.get(key)!r}; here "
                    f"{value!r}): use the recipe it was made with, or fit again"
                )


def found_or_fitted(
    method: str,
    given: Artifact | str | None,
    folder: Path | None,
    expected: Callable[[], Mapping[str, Any]],
    fit: Callable[[], Artifact],
) -> Artifact:
    """Return the artifact given (itself, or its folder) or left in `folder` by an earlier start; else fit and save it.

    Raises:
        ConfigError: it cannot be read, or what an earlier start left is not as `expected`.
    """
    if isinstance(given, Artifact):
        return given
    if given is not None:
        return Artifact.load(given, method)
    if folder is not None and (folder / INFO).is_file():
        earlier = Artifact.load(folder, method)
        earlier.require(**expected())
        return earlier
    artifact = fit()
    if folder is not None:
        by_main_process(lambda: artifact.save(folder))
    return artifact


def plain(value: Any) -> Any:
    """Return `value` as it comes back from JSON; dataclasses and mappings become dicts, tuples lists."""
    return json.loads(json.dumps(dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value, default=dict))  # type: ignore[arg-type]
