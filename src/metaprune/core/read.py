"""One reader for every file that metaprune wrote or is given: JSON, TOML and safetensors, with one error."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from metaprune.core.errors import ConfigError, DamagedFileError, DataMissingError, MetapruneError, first_line
from metaprune.core.files import SEAL, digest_of, tensors_digest

if TYPE_CHECKING:
    import torch

_DIGITS = 40  # a longer whole number is no seed, size or count, and floats cannot hold those of over 308


def read_json(path: Path, *, remedy: str, kind: type = dict, keys: tuple[str, ...] = ()) -> Any:
    """Read a JSON file whose outermost value is a `kind` and holds `keys`.

    Args:
        remedy: the next step, for the message, as "run its command again".

    Raises:
        DataMissingError: no such file. DamagedFileError: anything else than such a file.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8")
        data = json.loads(text, parse_int=_whole)
        if "\\ud" in text.lower():  # half of a pair: a text that nothing can print or write
            json.dumps(data, ensure_ascii=False).encode("utf-8")
    except FileNotFoundError as error:
        raise DataMissingError(f"there is no {path}: {remedy}") from error
    except (ValueError, RecursionError, OSError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else first_line(error)
        raise DamagedFileError(f"{path} is not JSON ({reason}): it is damaged, {remedy}") from error
    if not isinstance(data, kind):  # kind=object: the caller says what it is not
        damaged(path, f"it is {_called(data)}, not {_called(kind())}", remedy)
    if missing := [key for key in keys if key not in data]:
        damaged(path, f"it lacks {', '.join(missing)}", remedy)
    return data


def require_seal(path: Path, data: dict[str, Any], remedy: str) -> dict[str, Any]:
    """The table that `write_sealed` was given, without its digest; one of an older version has none.

    Raises:
        DamagedFileError: it is another one.
    """
    rest = {key: value for key, value in data.items() if key != SEAL}
    sealed = SEAL in data or "tensors_digest" in data  # whatever writes one of them writes the other
    if sealed and data.get(SEAL) != digest_of(rest):
        damaged(path, "its digest is of other content", remedy)
    return rest


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _called(value: Any) -> str:
    names = {dict: "a table", list: "a list", str: "text", type(None): "null"}
    return names.get(type(value), type(value).__name__)


@contextmanager
def understood(what: str, remedy: str) -> Iterator[None]:
    """Turn what a reader raises on content it does not expect into one error.

    Raises:
        DamagedFileError: the block raised an error that is none of metaprune's.
    """
    try:
        yield
    except (MetapruneError, OSError):  # a full disk is no damage
        raise
    except Exception as error:  # readers meet values of any type and sizes that do not fit
        raise DamagedFileError(
            f"{what} is damaged or was changed ({type(error).__name__}: {first_line(error)}): {remedy}"
        ) from error


def damaged(path: Path, what: str, remedy: str, cause: BaseException | None = None) -> NoReturn:
    """Raise DamagedFileError with path, fault and next step."""
    raise DamagedFileError(f"{path} is damaged or was changed ({what}): {remedy}") from cause


def read_tensors(
    path: Path, *, remedy: str, device: str | torch.device = "cpu", digest: str | None = None
) -> dict[str, torch.Tensor]:
    """Read a safetensors file; its sizes are checked against the file's before anything is allocated.

    Args:
        digest: what `tensors_digest` has to give; None for files of versions that wrote none.

    Raises:
        DamagedFileError: missing, damaged, or other tensors than the digest's.
    """
    from safetensors.torch import load_file

    try:
        tensors = load_file(path, device=str(device))
    except Exception as error:  # safetensors, torch and the system have their own classes
        raise DamagedFileError(f"{path} is missing or damaged ({first_line(error)}): {remedy}") from error
    if digest is not None and digest != tensors_digest(tensors):
        damaged(path, "its tensors are others than the ones that were saved with it", remedy)
    return tensors


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file that holds what JSON can hold, too: no dates.

    Raises:
        ConfigError: it cannot be read, or is no such file.
    """
    try:
        return parse_toml(path.read_bytes().decode("utf-8"))
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path} is not valid TOML ({first_line(error)}): correct it there") from error


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML text that holds what JSON can hold, too.

    Raises:
        ValueError: no TOML, nested too deeply, a number of over 40 digits, or a date.
    """
    try:
        data = tomllib.loads(text)
        json.loads(json.dumps(data), parse_int=_whole)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except TypeError as error:
        raise ValueError(f"a date or time, which no key takes ({first_line(error)}): write it in quotes") from error
    return data
