"""What a method or a training loop sees of a data set: splits that yield batches, and a few facts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from metaprune.core.arguments import check_arguments, check_fields
from metaprune.core.errors import DataError
from metaprune.objective import Classification, Objective, Split, TeacherSplit
from metaprune.objective.classification import OTHERS

__all__ = ["NO_SAMPLES", "Data", "Split"]


@dataclass(frozen=True)
class Data:
    """A data set, and what a network on it is trained for and judged by.

    Attributes:
        test: never used to choose anything; None where the user gave none.
        num_classes: 0 where the labels are not class indices.
        input_shape: (channels, height, width) of a sample, or whatever shape the user's samples have.
        digest: changes with the content of the splits or their normalisation. For a user's loaders and datasets it
            covers their types and lengths only.
        objective: classification where there are classes, if none is given; None where the labels do not say what they
            mean, and the user has not.
        carved: the splits that were cut out of the training part, since the source gives none.
        domains: the data sets that these are joined of (`join:SPEC+SPEC`), each with labels of its own.
    """

    name: str
    train: Split
    val: Split
    test: Split | None
    num_classes: int
    input_shape: tuple[int, ...]
    classes: tuple[str, ...]
    digest: str
    objective: Objective | None = None
    carved: tuple[str, ...] = ()
    domains: tuple[Data, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if self.objective is None and self.num_classes > 0:
            object.__setattr__(self, "objective", Classification())

    def split_sizes(self) -> dict[str, Any]:
        """Count the samples of each split, for a record; None where only a walk through the data could tell."""
        parts = {part: getattr(self, part) for part in ("train", "val", "test") if getattr(self, part) is not None}
        return {**{part: _length(split) for part, split in parts.items()}, "carved": list(self.carved)}

    def require_objective(self) -> Objective:
        """Return the objective.

        Raises:
            DataError: there is none.
        """
        if self.objective is None:
            raise DataError(f"{self.name}: what its labels mean is not known, as they are not class indices; {OTHERS}")
        return self.objective

    def judged_by(self, objective: Objective) -> Data:
        """Return the same data with another objective; loaders are read by its batch adapter."""
        check_arguments(Data.judged_by, locals())
        parts = {part: _read_by(getattr(self, part), objective) for part in ("train", "val", "test")}
        return dataclasses.replace(self, **parts, objective=objective)

    def bound_to(self, model: nn.Module) -> Data:
        """Return the same data; where the objective is label-free, with the outputs of `model` as the target."""
        check_arguments(Data.bound_to, locals())
        if self.objective is None or not self.objective.is_label_free:
            return self
        parts = (self.train, self.val, self.test)
        train, val, test = (p if p is None or isinstance(p, TeacherSplit) else TeacherSplit(p, model) for p in parts)
        return dataclasses.replace(self, train=train, val=val, test=test)


def _length(split: Any) -> int | None:
    source = getattr(split, "source", None)
    try:
        return len(split if source is None else getattr(source, "dataset", source))
    except TypeError:
        return None


def _read_by(split: Split | None, objective: Objective) -> Any:
    read_by = getattr(split, "read_by", None)
    return split if read_by is None else read_by(objective)


class _NoSamples:
    """An empty split, for training that is judged on nothing."""

    def __len__(self) -> int:
        return 0

    def batches(self, batch_size: int, **_: Any) -> Iterator[tuple[Any, Any]]:
        return iter(())


NO_SAMPLES: Split = _NoSamples()
