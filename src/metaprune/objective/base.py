"""What a network is trained for and judged by: one small contract that every loop, criterion and method meets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from metaprune.core.arguments import check_fields
from metaprune.core.errors import ConfigError, DataError
from metaprune.objective.batch import batch_size_of, inputs_and_target, tensors_in
from metaprune.objective.split import Split


@dataclass(frozen=True)
class Metric:
    """A figure that a network is judged by.

    Attributes:
        name: key in records, as `accuracy`.
        label: how reports name it, as `Accuracy`.
        higher_is_better: False for losses, errors and perplexity.
        percent: whether reports show it as a percentage (it is a share in 0..1).
    """

    name: str
    label: str
    higher_is_better: bool = True
    percent: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def text(self, value: float) -> str:
        """Format `84.10%` of a share, `12.34` of any other number."""
        return f"{value:.2%}" if self.percent else f"{value:.4g}"


LOSS = Metric("loss", "Loss", higher_is_better=False)


class Objective:
    """Loss and metrics of a network on one kind of target: the base class of all objectives.

    A subclass needs `name` and `loss`; its metric is then the mean loss. Metrics are read from sums, so that batches
    and processes simply add up.

    Attributes:
        name: what records and messages call it.
        primary: the metric that reports, searches and curves show.
        item: what `items` counts, as `sample`, `token` or `pixel`.
        smooths_labels: whether `loss` takes a label smoothing above 0.
        is_label_free: whether the network's own outputs are the target; see `metaprune.objective.match_outputs`.
    """

    name: str = "objective"
    primary: Metric = LOSS
    item: str = "sample"
    smooths_labels: bool = False
    is_label_free: bool = False

    def inputs_and_target(self, batch: Any) -> tuple[Any, Any]:
        """Split a batch of the user's loader into the model's inputs and the target."""
        return inputs_and_target(batch)

    def items(self, target: Any) -> float:
        """Count what the mean loss of a batch is a mean over: samples, or tokens that are not masked."""
        return batch_size_of(target)

    def loss(self, output: Any, target: Any, *, label_smoothing: float = 0.0) -> Tensor:
        """Compute the mean loss [] of one batch."""
        raise ConfigError(f"objective {self.name!r} has no loss: define loss(output, target) -> Tensor []")

    def sensitivity(self, output: Any, target: Any) -> Tensor:
        """Compute a number [] whose gradient says what matters, for criteria that rank by gradients: the loss.

        An objective whose loss is least at the network that is being ranked has no gradient there and gives another.
        """
        return self.loss(output, target)

    def sums(self, output: Any, target: Any) -> Tensor:
        """Compute what `metrics` needs, float64 [k], additive over batches."""
        return torch.zeros(0, dtype=torch.float64)

    def metrics(self, sums: Tensor, items: float) -> Mapping[str, float]:
        """Read metrics from the added-up sums and items; the mean loss is known as `loss` without it."""
        return {}

    def distillation(self, student: Any, teacher: Any, target: Any, temperature: float) -> Tensor:
        """Measure how far the student's output is from the teacher's, []."""
        return relative_error(student, teacher)

    def require_fit(self, output: Any, target: Any, *, data: str, num_classes: int) -> None:
        """Check an output against the target of the same batch, before hours are spent.

        Raises:
            DataError: the output or the target is of another kind than this objective takes.
        """
        loss = self.loss(output, target)
        require_scalar(self.name, loss)
        if not torch.isfinite(loss).all() and all(t.isfinite().all() for t in tensors_in(output)):
            raise DataError(
                f"objective {self.name!r}: the loss is {float(loss):g} on finite outputs of the first batch of {data}: "
                "check the loss function and the targets"
            )

    def require_labels(self, target: Any, num_classes: int, role: str) -> None:
        """Check the values of a batch's labels, wherever they come from. By default any will do.

        Args:
            num_classes: of the data; 0 where that is not known.
            role: the split, as `train`.

        Raises:
            DataError: a label that is no class, and that the objective does not ignore.
        """

    def score(self, model: nn.Module, split: Split) -> Mapping[str, float]:
        """Compute metrics that are not additive over batches, of a model in evaluation mode; empty for most."""
        return {}

    def chance(self, num_classes: int) -> float | None:
        """Return the primary metric of a network that knows nothing, or None where that is not known."""
        return None


def require_range(labels: Tensor, classes: int, ignored: int | None, role: str = "") -> None:
    """Raises DataError for an integer label below 0, or not below `classes` (0: any), that is not the ignored one."""
    judged = labels if ignored is None else labels[labels != ignored]
    if not judged.numel() or judged.is_floating_point():
        return
    low, high = (int(x) for x in torch.aminmax(judged))
    if low >= 0 and (not classes or high < classes):
        return
    wrong = low if low < 0 else high
    limit = f"labels are 0 to {classes - 1}" if classes else "labels are 0 and above"
    leave = "none is left out by its label here" if ignored is None else f"{ignored} is left out"
    raise DataError(
        f"label {wrong} in the {role or 'given'} data is no class: {limit}, {leave}. Mend or leave out such samples, "
        "or make model and data for more classes (num_classes)"
    )


def require_scalar(name: str, loss: Any) -> None:
    """Raises DataError unless the loss of objective `name` is one number."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else f"type {type(loss).__name__}"
        raise DataError(f"objective {name!r}: the loss has {what}; return one number, as loss.mean()")


def signed(metric: Metric, value: float) -> float:
    """Negate `value` where less is better: a score of which more is better."""
    return value if metric.higher_is_better else -value


@torch.no_grad()
def primary_of(objective: Objective, output: Any, target: Any, loss: float) -> float:
    """Compute the primary metric of one batch; the mean loss where the primary metric is not additive."""
    metrics = objective.metrics(objective.sums(output, target), max(objective.items(target), 1))
    return metrics.get(objective.primary.name, loss)


def logits_of(output: Any) -> Tensor:
    """Find the main tensor of a model's output.

    That is the output itself, its `logits` (transformers) or `out` (torchvision's segmentation), or a tuple's first.

    Raises:
        DataError: anything else.
    """
    if isinstance(output, Tensor):
        return output
    for key in ("logits", "out"):
        value = output.get(key) if isinstance(output, Mapping) else getattr(output, key, None)
        if isinstance(value, Tensor):
            return value
    if isinstance(output, (tuple, list)) and output:
        return logits_of(output[0])
    raise DataError(
        f"no logits in a model output of type {type(output).__name__}: the model has to return a tensor, a tuple that "
        "starts with it, or a mapping with 'logits' or 'out'; wrap it in a module that does, or use an objective that "
        "reads other outputs (objective='match_outputs', or your own)"
    )


def wide(logits: Tensor) -> Tensor:
    """Make float32 of half precision, which rounds a mean loss to two digits and loses small probabilities."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), the mean over rows of logits [N, C], [].

    T^2 keeps the gradient's size when T changes (Hinton, Vinyals & Dean, 2015).

    Raises:
        ConfigError: logits of different shapes.
    """
    if student.shape != teacher.shape:
        raise ConfigError(
            f"the original network gives logits {tuple(teacher.shape)}, the pruned one {tuple(student.shape)}: "
            "distillation needs the same classes; use recover='finetune'"
        )
    student_log = functional.log_softmax(wide(student) / temperature, dim=-1)
    teacher_log = functional.log_softmax(wide(teacher) / temperature, dim=-1)
    return functional.kl_div(student_log, teacher_log, reduction="batchmean", log_target=True) * temperature**2


def error_sums(output: Any, reference: Any) -> tuple[Tensor, Tensor]:
    """Squared error and squared reference of every floating tensor of two equal pytrees, [k] each.

    Raises:
        DataError: different numbers or shapes of tensors, or no floating one.
    """
    shapes = [[list(t.shape) for t in tensors_in(x)] for x in (output, reference)]
    if shapes[0] != shapes[1]:
        raise DataError(
            f"outputs of shapes {shapes[0]} cannot be compared with {shapes[1]}: outputs whose shape depends on the "
            "data (detections after suppression) have no error; prune the part of the model before them"
        )
    pairs = zip(tensors_in(output), tensors_in(reference), strict=True)
    dense = [(a, b) for a, b in pairs if a.is_floating_point()]
    if not dense:
        raise DataError("the model returns no floating tensor that could be compared")
    wide = [torch.promote_types(a.dtype, torch.float32) for a, _ in dense]
    errors = [(a.to(w) - b.to(w)).square().sum() for (a, b), w in zip(dense, wide, strict=True)]
    return torch.stack(errors), torch.stack([b.to(w).square().sum() for (_, b), w in zip(dense, wide, strict=True)])


def relative_error(output: Any, reference: Any) -> Tensor:
    """Mean over floating output tensors of ||output - reference||^2 / ||reference||^2, []."""
    errors, norms = error_sums(output, reference)
    return (errors / norms.clamp_min(1e-12)).mean()
