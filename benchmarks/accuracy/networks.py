"""The networks whose accuracy right after the cut is measured: how each is made, and the data that it was trained on.

    python benchmarks/accuracy/networks.py --folder FOLDER

trains the three of Fashion-MNIST (minutes each on one thread) and leaves their weights in FOLDER, where the weights
and images of the others lie too (see benchmarks/README.md).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import metaprune as mp
from metaprune.data import TensorSplit
from metaprune.data.npz import decode_packed
from metaprune.models import create
from metaprune.train.evaluate import evaluate
from metaprune.train.loop import train

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of the photographs' pixels
CENTRED = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Subject:
    """A network of the study.

    weights, data: files of the folder, or a built-in data set.
    image: shape of an example without its batch.
    training: what made the weights here.
    arguments: of every prune; `round_to` binds Torch-Pruning too.
    normalised: mean and standard deviation that photographs are normalised by.
    """

    model: str
    weights: str
    data: str
    image: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    training: mp.TrainConfig | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    normalised: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET

    @property
    def example(self) -> Tensor:
        return torch.zeros(2, *self.image)

    def network(self, folder: Path) -> nn.Module:
        return create(self.model, weights=str(folder / self.weights), **self.options).eval()

    def samples(self, folder: Path, test: int) -> mp.Data:
        """Training and validation samples, and the first `test` of those that judge."""
        if self.data == PHOTOGRAPHS:
            return photographs(folder / self.data, *self.normalised)
        data = mp.load_data(self.data if ":" in self.data else f"npz:{folder / self.data}")
        return replace(data, test=data.test.take(test))


CIFAR, FASHION, PHOTOGRAPHS = "cifar10_jpeg.npz", "builtin:fashion-mnist", "imagenet_photos_500.npz"
SGD = mp.TrainConfig(epochs=4, lr=0.1, batch_size=128, augment=False)
ADAMW = mp.TrainConfig(epochs=3, optimizer="adamw", lr=1e-3, weight_decay=0.05, warmup_epochs=0.5, augment=False)
GREY = {"num_classes": 10, "in_channels": 1}
PHOTOGRAPH = {"image": (3, 224, 224), "data": PHOTOGRAPHS, "arguments": {"round_to": 8, "batch_size": 25}}
SUBJECTS = {
    "resnet20": Subject("zoo:resnet20", "resnet20_cifar10.safetensors", CIFAR, (3, 32, 32)),
    "resnet56": Subject("zoo:resnet56", "resnet56_cifar10.safetensors", CIFAR, (3, 32, 32)),
    "vgg19": Subject("zoo:vgg19_bn", "vgg19_fashion.safetensors", FASHION, (1, 28, 28), {**GREY, "width": 0.2}, SGD),
    "mobilenet_v1": Subject(
        "zoo:mobilenet_v1",
        "mobilenet_v1_fashion.safetensors",
        FASHION,
        (1, 28, 28),
        {**GREY, "width": 0.25, "stem_stride": 1},
        replace(SGD, epochs=2),
    ),
    "vit": Subject("zoo:vit_micro", "vit_fashion.safetensors", FASHION, (1, 28, 28), {}, ADAMW),
    "mobilenet_v2": Subject("torchvision:mobilenet_v2", "mobilenet_v2-b0353104.pth", **PHOTOGRAPH),
    "efficientnet_lite0": Subject(
        "timm:tf_efficientnet_lite0", "efficientnet_lite0.safetensors", **PHOTOGRAPH, normalised=CENTRED
    ),
}


def photographs(file: Path, mean: tuple[float, ...], std: tuple[float, ...]) -> mp.Data:
    """Two of five photographs calibrate, the others judge: 224x224 from the middle."""
    with np.load(file, allow_pickle=False) as content:
        images = torch.from_numpy(decode_packed(content["jpeg"], content["offsets"], str(file)))
        labels = torch.from_numpy(content["labels"].astype(np.int64))
    calibrates = torch.arange(len(images)) % 5 < 2  # they come in the order of their classes
    images = images[:, :, 16:240, 16:240]
    train, test = (TensorSplit(images[part], labels[part], mean, std) for part in (calibrates, ~calibrates))
    return mp.as_data((train, train.take(8), test), num_classes=1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    for name, subject in SUBJECTS.items():
        if subject.training is not None and not (folder / subject.weights).exists():
            began = time.process_time()
            data = mp.load_data(subject.data)
            with mp.Rng(0).child("weights").torch_global():
                model = create(subject.model, **subject.options)
            train(model, data, subject.training, rng=mp.Rng(0).child("train"), progress=False)
            accuracy = evaluate(model, data.test, objective=data.objective)["accuracy"]
            print(f"{name}: {accuracy:.1%} in {time.process_time() - began:.0f} CPU seconds", flush=True)
            save_file(model.state_dict(), folder / subject.weights)


if __name__ == "__main__":
    main()
