"""A saved network by its name on the Hugging Face Hub: tensors and JSON are fetched, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from metaprune.core.errors import DataMissingError, first_line
from metaprune.core.imports import import_optional

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_FILES = ("*.json", "*.safetensors")  # no code, no pickles


def folder_of(name: str | Path) -> Path:
    """Return a folder as it is, and one of a network that a text names as OWNER/NAME, where there is no such folder.

    Raises:
        DataMissingError: neither a folder here nor a network on the Hub.
    """
    folder = Path(name)
    if not isinstance(name, str) or folder.exists() or not HUB_NAME.fullmatch(name):
        return folder
    hub = import_optional("huggingface_hub", "hf")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=list(_FILES)))
    except (hub.errors.HfHubHTTPError, hub.errors.LocalEntryNotFoundError, OSError) as error:
        raise DataMissingError(
            f"{name} is no folder here, and the Hub did not give it ({first_line(error)}): check the name, or log in "
            "by `hf auth login`"
        ) from error
