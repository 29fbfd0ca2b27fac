"""Data from a spec string, or from what the user already has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metaprune.core.arguments import check_arguments
from metaprune.core.errors import DataError, MetapruneError, one_line_error
from metaprune.data.arrays import Options, to_data
from metaprune.data.folder import open_folder
from metaprune.data.hub import hub_tables, images_of
from metaprune.data.image_source import image_source_to_data
from metaprune.data.loader_split import splits_to_data
from metaprune.data.npz import read_npz
from metaprune.data.scheme import DataScheme, forms, load_spec
from metaprune.data.text import read_documents, text_columns, text_to_data
from metaprune.data.types import Data
from metaprune.objective import Objective, create_objective


def load_data(
    spec: str,
    *,
    seed: int = 0,
    limit: int | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    skip_corrupt: bool = False,
    tokenizer: str | None = None,
    sequence_length: int | None = None,
    model_tokenizer: str | None = None,
) -> Data:
    """Load a data set. Nothing is downloaded, except by `hf:` with a Hub name.

    Splits do not depend on `seed`. A part that the source gives is taken as it is; else 15% of each class are held
    out as the test split, and 10% as the validation split (emoji: by emoji, both vendors on one side). With a val but
    no test part there is no test split, and figures are of val.

    Args:
        spec: `builtin:NAME` (brown, jargon: text, by default tokens of SmolLM2; brown/GENRE);
            `imagefolder:DIR`
            (DIR/train/CLASS/*, optional DIR/val and DIR/test, or DIR/CLASS/*); `npz:FILE` with uint8 `images` and
            integer `labels`, or `train_images`, `train_labels`, `test_...`, `val_...`, or `train_jpeg`,
            `train_offsets`, `train_labels`, ...; `text:FOLDER_OR_FILE`, documents that are files of a folder,
            lines of a .jsonl or paragraphs of a file; `hf:NAME_OR_DIR` with images and labels, or with text;
            `python:module:function`, which returns anything `as_data` accepts; `join:SPEC+SPEC`, several data sets
            of images as one, the labels of each after those of the ones before.
        seed: which training samples `limit` keeps.
        limit: number of training samples, in the classes' shares.
        image_size: pixels of both sides; default: as they are.
        channels: 1 or 3; default: as they are.
        mean: one per channel, for pixels in 0..1. Default: the constants that published ImageNet weights use for
            colour; measured on the training split for grey.
        std: the same of the deviation.
        skip_corrupt: leave out images that cannot be decoded, with a warning that names them (imagefolder, hf).
        tokenizer: of text: a tokenizer.json, a folder of one, or a name on the Hub.
        sequence_length: tokens of a sequence of text; default 128.
        model_tokenizer: the tokenizer where `tokenizer` is not given; images do not need it.

    Raises:
        ConfigError: spec not understood; unknown builtin name.
        DataMissingError: a built-in set that is not in the cache; holds the command that gets it.
        DataError: data that cannot be used.
        MissingDependencyError: `hf:` without the `datasets` package.
    """
    check_arguments(load_data, locals())
    options = Options(
        seed,
        limit,
        image_size,
        channels,
        None if mean is None else tuple(mean),
        None if std is None else tuple(std),
        tokenizer,
        sequence_length,
        model_tokenizer,
    )
    return load_spec(spec, f"Data {spec!r}", options, skip_corrupt)


def _from_python(target: str, spec: str, options: Options, skip_corrupt: bool) -> Data:
    from metaprune.core.imports import import_python_target

    try:
        source = import_python_target(target)()
    except MetapruneError:
        raise
    except Exception as error:  # the user's function may raise anything
        raise DataError(f"{spec} gave no data: {one_line_error(error)}") from error
    return as_data(source, name=spec)


def as_data(
    source: Any,
    *,
    name: str | None = None,
    num_classes: int | None = None,
    objective: Objective | str | Mapping[str, Any] | None = None,
) -> Data:
    """Make `Data` from what the user has.

    Args:
        source: `Data` (returned as it is), a spec string, or (train, val) or (train, val, test) of torch DataLoaders,
            map-style Datasets, or `Split`s. Batches may be pairs, longer tuples, mappings or dataclasses.
        name: what the data are called in records.
        num_classes: default: from the dataset's `classes`, `targets` or `labels`, else from validation labels.
        objective: what the labels mean, see `metaprune.objective.create_objective`. Default: the source's own, or
            classification where the labels are class indices.

    Raises:
        ConfigError: an objective that is not understood.
        DataError: anything else; says what is accepted.
    """
    check_arguments(as_data, locals())
    objective = create_objective(objective)
    if isinstance(source, str):
        source = load_data(source)
    if isinstance(source, Data):
        return source if objective is None else source.judged_by(objective)
    if isinstance(source, (tuple, list)) and len(source) in (2, 3):
        parts = list(source) if source[-1] is not None else list(source[:-1])
        if len(parts) >= 2:
            return splits_to_data(parts, name or "user data", num_classes, objective)
    raise DataError(
        f"Data cannot be a {type(source).__name__}: pass a Data, a spec string ({forms()}), or (train, val) or "
        "(train, val, test) of torch DataLoaders or map-style Datasets."
    )


def _from_folder(name: str, spec: str, options: Options, skip_corrupt: bool) -> Data:
    return image_source_to_data(spec, open_folder(name), options, skip_corrupt=skip_corrupt)


def _from_hub(name: str, spec: str, options: Options, skip_corrupt: bool) -> Data:
    tables = hub_tables(name)
    documents = text_columns(name, tables)
    if documents is not None:
        return text_to_data(spec, documents, options)
    return image_source_to_data(spec, images_of(name, tables), options, skip_corrupt=skip_corrupt)


def _from_text(name: str, spec: str, options: Options, skip_corrupt: bool) -> Data:
    return text_to_data(spec, {"train": read_documents(Path(name).expanduser())}, options)


def _from_npz(name: str, spec: str, options: Options, skip_corrupt: bool) -> Data:
    return to_data(spec, read_npz(name), options)


IMAGEFOLDER = DataScheme(load=_from_folder, form="imagefolder:DIR")
NPZ = DataScheme(load=_from_npz, form="npz:FILE")
TEXT = DataScheme(load=_from_text, form="text:FOLDER_OR_FILE")
HF = DataScheme(load=_from_hub, form="hf:NAME_OR_DIR")
PYTHON = DataScheme(load=_from_python, form="python:module:function")
