"""What meta-training leaves behind: tensors in safetensors, the rest in JSON; nothing pickled."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from metaprune.core.errors import ConfigError, DamagedFileError
from metaprune.core.files import part_of, tensors_digest, whole_files, write_sealed, write_tensors
from metaprune.core.read import read_json, read_tensors, require_seal, understood
from metaprune.train.processes import by_main_process

TENSORS, INFO = "artifact.safetensors", "artifact.json"
_DIGEST = "tensors_digest"


@dataclass(frozen=True, eq=False)
class Artifact:
    """method: whose it is. tensors: by name. info: JSON-able, with the options that made it and the space's digest."""

    method: str
    tensors: Mapping[str, torch.Tensor]
    info: Mapping[str, Any] = field(default_factory=dict)

    def save(self, folder: str | Path) -> Path:
        """Write both files; an older artifact there is replaced as a whole, or stays.

        Raises:
            WriteError: a full disk, or no rights.
        """
        folder = Path(folder)
        with whole_files(folder) as draft:
            write_tensors(draft / TENSORS, self.tensors)
            digest = {_DIGEST: tensors_digest(self.tensors)}
            write_sealed(draft / INFO, {"method": self.method, **self.info, **digest})
        return folder

    @classmethod
    def load(cls, folder: str | Path, method: str) -> Artifact:
        """Read what `save` wrote. Artifacts of early versions hold no digests, and are read without them.

        Raises:
            ConfigError: a folder without an artifact, or with another method's. DamagedFileError: a damaged one.
        """
        folder = Path(folder)
        path = part_of(folder, INFO)
        if not path.is_file():
            raise ConfigError(f"{folder} holds no artifact of {method}: make one with `metaprune fit {method} RECIPE`")
        try:
            info = require_seal(path, read_json(path, remedy="fit it again"), "fit it again")
            digest = info.pop(_DIGEST, None)
            tensors = read_tensors(part_of(folder, TENSORS), remedy="fit it again", digest=digest)
        except DamagedFileError as error:
            raise DamagedFileError(f"the artifact in {folder} cannot be read ({error})") from error
        made_by = info.pop("method", None)
        if made_by != method:
            raise ConfigError(f"the artifact in {folder} is of method {made_by!r}, not of {method!r}")
        return cls(method, tensors, info)

    def understood(self) -> AbstractContextManager[None]:
        """A block that reads tensors and info: what does not fit there is one DamagedFileError."""
        return understood(f"the artifact of {self.method}", "fit it again")

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
    if folder is not None and part_of(folder, INFO).is_file():
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
