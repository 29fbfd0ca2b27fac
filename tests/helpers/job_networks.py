"""Small networks and data of every kind of task."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

SAMPLES = 24


class Rows(Dataset):
    """Samples that are mappings."""

    def __init__(self, **columns: Tensor):
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


class TinyUNet(nn.Module):
    """Two resolutions and a skip that is concatenated."""

    def __init__(self, classes: int = 3):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.bottom = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.up = nn.Sequential(nn.Conv2d(24, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        x = functional.interpolate(self.bottom(functional.max_pool2d(skip, 2)), scale_factor=2.0)
        return self.head(self.up(torch.cat([x, skip], dim=1)))


class TinyDetector(nn.Module):
    """A dict of dense outputs, as detectors give before suppression."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU())
        self.heat, self.boxes = nn.Conv2d(12, 1, 1), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Any]:
        features = self.body(x)
        return {"heat": self.heat(features).sigmoid(), "boxes": [self.boxes(features)]}


def perceptron(outputs: int = 1) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, outputs))


def labeller(outputs: int = 5) -> nn.Module:
    first = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(
        *first, nn.Conv2d(8, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, outputs)
    )


def tiny_llama() -> nn.Module:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config)


def _images(channels: int = 1, side: int = 8) -> Tensor:
    return torch.randn(SAMPLES, channels, side, side)


def regression_data() -> tuple[Dataset, ...]:
    x = torch.randn(SAMPLES, 6)
    return (TensorDataset(x, x.sum(1)),) * 3


def label_data() -> tuple[Dataset, ...]:
    return (TensorDataset(_images(), torch.rand(SAMPLES, 5) < 0.4),) * 3


def map_data() -> tuple[Dataset, ...]:
    images = _images()
    return (TensorDataset(images, (images[:, 0] > 0).long() + (images[:, 0] > 1)),) * 3


def token_data() -> tuple[Dataset, ...]:
    """Padded to 12 tokens: rows of different lengths."""
    ids = torch.randint(1, 50, (SAMPLES, 12))
    mask = torch.arange(12) < torch.randint(4, 13, (SAMPLES, 1))
    return (Rows(input_ids=ids * mask, attention_mask=mask.long(), labels=ids.masked_fill(~mask, -100)),) * 3


def picture_data() -> tuple[Dataset, ...]:
    return (TensorDataset(_images(3)),) * 3


JOBS = {
    "regression": SimpleNamespace(model=perceptron, data=regression_data, objective="regression"),
    "multi_label": SimpleNamespace(model=labeller, data=label_data, objective="multi_label"),
    "segmentation": SimpleNamespace(
        model=TinyUNet, data=map_data, objective={"kind": "segmentation", "classes": 3, "ignore_index": 255}
    ),
    "next_token": SimpleNamespace(model=tiny_llama, data=token_data, objective="next_token"),
    "match_outputs": SimpleNamespace(model=TinyDetector, data=picture_data, objective="match_outputs"),
}
