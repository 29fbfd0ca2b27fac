"""Numbers and maps as targets: regression and segmentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from metaprune.core.arguments import check_fields
from metaprune.core.errors import ConfigError, DataError
from metaprune.objective.base import Metric, Objective, logits_of, require_range, soft_cross_entropy, wide


@dataclass(frozen=True)
class Regression(Objective):
    """Floating targets of the output's shape (a last dimension of one may be left out), by mean squared error."""

    name = "regression"
    primary = Metric("rmse", "RMSE", higher_is_better=False)

    def _pair(self, output: Any, target: Any) -> tuple[Tensor, Tensor]:
        predicted = logits_of(output)
        if isinstance(target, Tensor) and target.shape != predicted.shape:
            squeezed = predicted.squeeze(-1) if predicted.dim() == target.dim() + 1 else predicted
            wide = target.squeeze(-1) if target.dim() == predicted.dim() + 1 else target
            predicted, target = squeezed, wide
        if not isinstance(target, Tensor) or target.shape != predicted.shape or target.dtype == torch.bool:
            given = f"{target.dtype} {list(target.shape)}" if isinstance(target, Tensor) else type(target).__name__
            raise DataError(
                f"target {given} for outputs {list(predicted.shape)}: objective 'regression' takes numbers of the "
                "outputs' shape (broadcasting would compare every sample with every other)"
            )
        return predicted, target.to(predicted.dtype)

    def loss(self, output: Any, target: Any, *, label_smoothing: float = 0.0) -> Tensor:
        return functional.mse_loss(*self._pair(output, target))

    def sums(self, output: Any, target: Any) -> Tensor:
        predicted, wanted = (t.detach().double() for t in self._pair(output, target))
        error = predicted - wanted
        count = torch.tensor(float(error.numel()), dtype=torch.float64, device=error.device)
        return torch.stack([count, error.square().sum(), error.abs().sum(), wanted.sum(), wanted.square().sum()])

    def metrics(self, sums: Tensor, items: float) -> Mapping[str, float]:
        count, squared, absolute, total, square = sums.tolist()
        variance = square - total**2 / count
        explained = {"r2": 1 - squared / variance} if variance > 0 else {}
        return {"rmse": (squared / count) ** 0.5, "mae": absolute / count, **explained}

    def distillation(self, student: Any, teacher: Any, target: Any, temperature: float) -> Tensor:
        return functional.mse_loss(logits_of(student), logits_of(teacher))


@dataclass(frozen=True)
class Segmentation(Objective):
    """Integer maps [B, H, W] and logits [B, classes, h, w], which are resized to the map (bilinear).

    Attributes:
        classes: number of classes.
        ignore_index: pixels of this value are neither trained on nor judged.
    """

    classes: int
    ignore_index: int = -100

    name = "segmentation"
    primary = Metric("mean_iou", "Mean IoU", percent=True)
    item = "pixel"
    smooths_labels = True

    def __post_init__(self) -> None:
        check_fields(self)
        if self.classes < 2:
            raise ConfigError(f"segmentation needs 2 classes or more, not {self.classes}")

    def require_labels(self, target: Any, num_classes: int, role: str) -> None:
        if isinstance(target, Tensor):
            require_range(target, self.classes, self.ignore_index, role)

    def items(self, target: Any) -> float:
        return int((target != self.ignore_index).sum())

    def _logits(self, output: Any, target: Any) -> Tensor:
        logits = logits_of(output)
        is_map = isinstance(target, Tensor) and target.ndim == 3 and not target.is_floating_point()
        if not is_map or logits.ndim != 4 or logits.shape[1] != self.classes:
            given = f"{target.dtype} {list(target.shape)}" if isinstance(target, Tensor) else type(target).__name__
            raise DataError(
                f"target {given} for outputs {list(logits.shape)}: objective 'segmentation' takes integer maps "
                f"[B, H, W] and outputs [B, {self.classes}, H, W]"
            )
        if logits.shape[2:] == target.shape[1:]:
            return logits
        return functional.interpolate(logits, size=target.shape[1:], mode="bilinear", align_corners=False)

    def loss(self, output: Any, target: Any, *, label_smoothing: float = 0.0) -> Tensor:
        logits = self._logits(output, target)
        return masked_cross_entropy(logits, target, self.ignore_index, label_smoothing)

    def sums(self, output: Any, target: Any) -> Tensor:
        said, judged = self._logits(output, target).detach().argmax(dim=1), target != self.ignore_index
        pairs = target[judged] * self.classes + said[judged]
        return torch.bincount(pairs, minlength=self.classes**2).double()

    def metrics(self, sums: Tensor, items: float) -> Mapping[str, float]:
        table = sums.view(self.classes, self.classes)
        both = table.diagonal()
        union = table.sum(0) + table.sum(1) - both
        share = (both / union)[union > 0]
        return {"mean_iou": float(share.mean()), "pixel_accuracy": float(both.sum() / table.sum())}

    def distillation(self, student: Any, teacher: Any, target: Any, temperature: float) -> Tensor:
        rows = [self._logits(x, target).movedim(1, -1)[target != self.ignore_index] for x in (student, teacher)]
        return soft_cross_entropy(rows[0], rows[1], temperature)

    def require_fit(self, output: Any, target: Any, *, data: str, num_classes: int) -> None:
        self._logits(output, target)
        judged = target[target != self.ignore_index]
        if judged.numel() and not 0 <= int(judged.min()) <= int(judged.max()) < self.classes:
            raise DataError(
                f"{data} has class {int(judged.max())} (least {int(judged.min())}) in its maps, and objective "
                f"'segmentation' was given classes={self.classes} and ignore_index={self.ignore_index}"
            )
        super().require_fit(output, target, data=data, num_classes=num_classes)


def masked_cross_entropy(logits: Tensor, target: Tensor, ignore_index: int, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over what is not masked, []; zero where all is (PyTorch's mean is NaN there)."""
    if target.device.type == "cpu":  # elsewhere a look at values would wait for the device
        require_range(target, logits.shape[1], ignore_index)
    total = functional.cross_entropy(
        wide(logits), target, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="sum"
    )
    return total / (target != ignore_index).sum().clamp_min(1)
