"""Data sets of the Hugging Face Hub, or saved by its `datasets` library; imported when used."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from metaprune.core.errors import DataError, MissingDependencyError
from metaprune.data.arrays import numbered_classes
from metaprune.data.image_source import ImageSource

_PARTS = {"train": ("train", "training"), "val": ("validation", "val", "valid", "dev"), "test": ("test",)}
_LABELS = ("label", "labels", "fine_label", "target", "class")
_SAVED = ("dataset_dict.json", "dataset_info.json", "state.json")  # what `save_to_disk` leaves


def _library() -> Any:
    if importlib.util.find_spec("datasets") is None:
        raise MissingDependencyError("datasets is not installed: run `pip install 'metaprune[hf]'`.")
    return importlib.import_module("datasets")


def _load(name: str, cache: Path | None) -> dict[str, Any]:
    library = _library()
    folder = Path(name).expanduser()
    try:
        if folder.is_dir() and any((folder / saved).is_file() for saved in _SAVED):
            loaded = library.load_from_disk(str(folder))
        elif folder.is_dir():
            loaded = library.load_dataset("imagefolder", data_dir=str(folder))
        else:
            loaded = library.load_dataset(name, cache_dir=None if cache is None else str(cache))
    except MissingDependencyError:
        raise
    except Exception as error:  # the library raises its own, the network's and the file system's errors
        reason = (str(error).splitlines() or [""])[0]
        raise DataError(
            f"hf:{name} cannot be loaded ({type(error).__name__}: {reason}). Give a Hub name while online, a folder "
            "of save_to_disk, or a folder of images."
        ) from error
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def hub_tables(name: str, cache: Path | None = None) -> dict[str, Any]:
    """Tables of a Hub data set or a saved folder, by part: train, and val and test where it has them.

    Raises:
        MissingDependencyError: `datasets` is not installed.
        DataError: it cannot be loaded, or has no training part.
    """
    loaded = _load(name, cache)
    tables = {part: loaded[n] for part, names in _PARTS.items() for n in names if n in loaded}
    if "train" not in tables:
        raise DataError(f"hf:{name} has the parts {sorted(loaded)}; one must be called train.")
    return tables


def images_of(name: str, tables: Mapping[str, Any]) -> ImageSource:
    """Images and labels of tables by part.

    Raises:
        DataError: no image or label column.
    """
    features = tables["train"].features
    image_column = next((c for c, f in features.items() if type(f).__name__ == "Image"), None)
    label_column = next((c for c in _LABELS if c in features), None) or next(
        (c for c, f in features.items() if type(f).__name__ == "ClassLabel"), None
    )
    if image_column is None or label_column is None:
        raise DataError(
            f"hf:{name} has the columns {sorted(features)}; an Image and a label column are needed, or one of text."
        )
    rows: list[tuple[Any, int]] = []
    parts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for part, table in tables.items():
        labels = np.asarray(table[label_column][:], dtype=np.int64)
        if len(labels) and labels.min() < 0:
            if part == "train":
                raise DataError(f"hf:{name}: the training part has samples without a label (-1).")
            continue  # a test part without labels, as in competitions: hold out our own
        start = len(rows)
        rows += [(table, i) for i in range(len(labels))]
        parts[part] = (np.arange(start, len(rows)), labels)
    names = getattr(features[label_column], "names", None)
    classes = tuple(names) if names else numbered_classes(int(parts["train"][1].max()), len(rows))

    def open_image(key: int) -> Image.Image:
        table, index = rows[key]
        image = table[index][image_column]
        if not isinstance(image, Image.Image):
            raise DataError(f"hf:{name}: row {index} holds a {type(image).__name__}, not an image.")
        return image

    return ImageSource(open_image, lambda key: f"{name}[{rows[key][1]}]", parts, classes)


def hub_arrays(name: str, cache: Path) -> dict[str, np.ndarray]:
    """Decode a whole Hub data set of equal-sized images: `PART_images` uint8 [N, H, W(, 3)] and `PART_labels`."""
    opened = images_of(name, hub_tables(name, cache))
    result: dict[str, np.ndarray] = {}
    for part, (keys, labels) in opened.parts.items():
        result[part + "_images"] = np.stack([np.asarray(opened.open_image(int(key))) for key in keys])
        result[part + "_labels"] = labels
    return result
