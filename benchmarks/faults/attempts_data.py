"""Data as users bring them: labels, shapes, loaders and folders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attempt import Attempt
from material import ARRAYS, X, fault_of, samples, small_network
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import metaprune as mp
from metaprune.testing import assert_untouched

GOOD = torch.arange(24) % 3


class Lies(Dataset):
    """Samples by a function, and a length that may be wrong."""

    def __init__(self, sample: Callable[[int], Any], length: Any = 24):
        self.sample, self.length = sample, length

    def __len__(self) -> Any:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return self.sample(index)


class Stream(IterableDataset):
    def __init__(self, count: int):
        self.count = count

    def __iter__(self) -> Iterator[Any]:
        return ((X[0], i % 3) for i in range(self.count))


def _broken(index: int) -> Any:
    raise ValueError("a file\nis not there")


def _labels() -> dict[str, Tensor]:
    at = GOOD.clone()
    at[7] = 2**40
    return {
        "2^40": at,
        "-1": torch.where(GOOD == 2, -1, GOOD),
        "-100": torch.where(GOOD == 2, -100, GOOD),
        "3": GOOD + 1,
        "bool": GOOD > 0,
        "int8": GOOD.to(torch.int8),
        "uint8": GOOD.to(torch.uint8),
        "float": GOOD.float(),
        "half": GOOD.half(),
        "NaN": torch.full((24,), float("nan")),
        "of shape [n, 1]": GOOD[:, None],
        "one-hot": torch.eye(3)[GOOD],
        "of shape [n, 0]": torch.zeros(24, 0),
        "complex": GOOD + 0j,
        "all equal": torch.zeros(24, dtype=torch.long),
        "maps": torch.zeros(24, 2, 2, dtype=torch.long),
        "strings": torch.zeros(24, 5, dtype=torch.uint8),
    }


def _sources() -> dict[str, Callable[[], Any]]:
    def lies(sample: Callable[[int], Any], length: Any = 24) -> Callable[[], Any]:
        return lambda: (Lies(sample, length), samples())

    def shaped(*shape: int) -> Callable[[], Any]:
        return lambda: (TensorDataset(torch.zeros(24, *shape), GOOD), samples())

    sources: dict[str, Callable[[], Any]] = {
        "a sample that raises": lies(_broken),
        "None": lies(lambda i: None),
        "a text": lies(lambda i: "x"),
        "a number": lies(lambda i: 3.0),
        "a lone tensor": lies(lambda i: X[0]),
        "an empty tuple": lies(lambda i: ()),
        "one of three": lies(lambda i: (X[0], i % 3, "x")),
        "a dict": lies(lambda i: {"x": X[0], "labels": i % 3}),
        "an unknown dict": lies(lambda i: {"p": X[0], "q": i % 3}),
        "text labels": lies(lambda i: (X[0], "cat")),
        "None labels": lies(lambda i: (X[0], None)),
        "numpy": lies(lambda i: (X[0].numpy(), i % 3)),
        "objects": lies(lambda i: (object(), 1)),
        "ragged": lies(lambda i: (torch.zeros(1 + i % 4), i % 3)),
        "float64": lies(lambda i: (X[0].double(), i % 3)),
        "length 0": lies(lambda i: (X[0], 0), 0),
        "length -1": lies(lambda i: (X[0], 0), -1),
        "length 1": lies(lambda i: (X[0], 0), 1),
        "length 2^40": lies(lambda i: (X[0], i % 3), 2**40),
        "length 1.5": lies(lambda i: (X[0], 0), 1.5),
        "length None": lies(lambda i: (X[0], 0), None),
        "too long a length": lies(lambda i: (samples()[i][0], i % 3), 48),
        "width 5": shaped(5),
        "width 0": shaped(0),
        "images": shaped(3, 4, 4),
        "no width": shaped(),
        "a stream": lambda: (Stream(24), samples()),
        "an empty stream": lambda: (DataLoader(Stream(0), 4), samples()),
        "a loader of a stream": lambda: (DataLoader(Stream(24), 4), samples()),
        "a stream of one": lambda: (DataLoader(Stream(1), 4), samples()),
        "no batching": lambda: (DataLoader(samples(), batch_size=None), samples()),
        "everything dropped": lambda: (DataLoader(samples(), 99, drop_last=True), samples()),
        "collate to None": lambda: (DataLoader(samples(), 4, collate_fn=lambda b: None), samples()),
        "one part": lambda: (samples(),),
        "four parts": lambda: (samples(),) * 4,
        "no parts": lambda: (),
        "None parts": lambda: (None, None),
        "a generator": lambda: ((i for i in range(3)), samples()),
        "a list of pairs": lambda: ([(X[0], 0)] * 8, [(X[0], 0)] * 8),
        "a tensor": lambda: (X, X),
        "swapped": lambda: (TensorDataset(GOOD, samples().tensors[0]), samples()),
        "validation empty": lambda: (samples(), TensorDataset(X[:0], GOOD[:0])),
        "validation of width 5": lambda: (samples(), TensorDataset(torch.zeros(4, 5), GOOD[:4])),
        "test of width 5": lambda: (samples(), samples(), TensorDataset(torch.zeros(4, 5), GOOD[:4])),
        "validation NaN": lambda: (samples(), TensorDataset(X[:1] * float("nan"), GOOD[:1])),
        "training NaN": lambda: (TensorDataset(samples().tensors[0] * float("nan"), GOOD), samples()),
        "on meta": lambda: (TensorDataset(torch.zeros(24, 4, device="meta"), GOOD), samples()),
        "sparse": lambda: (Lies(lambda i: (X[0].to_sparse(), i % 3)), samples()),
        "with gradients": lambda: (TensorDataset(torch.zeros(24, 4, requires_grad=True), GOOD), samples()),
    }
    for name, labels in _labels().items():
        sources[f"labels {name}"] = lambda labels=labels: (samples(None, labels), samples())
        sources[f"validation labels {name}"] = lambda labels=labels: (samples(), samples(None, labels))
    return sources


def data(tmp: Path) -> Iterator[Attempt]:
    """Every source with a method that reads it, with compensation, and with a short training; npz files; folders."""
    tiny = mp.RecoverConfig(kind="finetune", train=mp.TrainConfig(epochs=1, batch_size=8))
    ways: dict[str, dict[str, Any]] = {
        "auto": {},
        "taylor": {"method": "taylor"},
        "finetune": {"method": "magnitude", "recover": tiny},
    }
    model = small_network()
    for name, source in _sources().items():
        for way, arguments in ways.items():

            def call(source: Callable[[], Any] = source, arguments: dict[str, Any] = arguments) -> str | None:
                with assert_untouched(model):
                    result = mp.prune(
                        model,
                        X,
                        budget="macs=60%",
                        data=source(),
                        batch_size=8,
                        progress=False,
                        verify=False,
                        **arguments,
                    )
                return fault_of(result)

            yield Attempt(f"{name}, {way}", call)
    yield from _npz(tmp)
    yield from _folders(tmp)


def _npz(tmp: Path) -> Iterator[Attempt]:
    images, labels = ARRAYS["images"], ARRAYS["labels"]
    changes: dict[str, dict[str, Any]] = {
        "float images": {"images": images / 255.0},
        "NaN images": {"images": images * np.nan},
        "int64 images": {"images": images.astype(np.int64)},
        "negative images": {"images": images.astype(np.int16) - 300},
        "bool images": {"images": images > 9},
        "text images": {"images": images.astype(str)},
        "objects": {"images": np.array([None] * 60, object)},
        "complex images": {"images": images + 0j},
        "channels last": {"images": images.reshape(60, 4, 4, 4)},
        "two channels": {"images": images.reshape(60, 2, 4, 8)},
        "1x1": {"images": images[:, :1, :1]},
        "no images": {"images": images[:0], "labels": labels[:0]},
        "one image": {"images": images[:1], "labels": labels[:1]},
        "two images": {"images": images[:2], "labels": labels[:2]},
        "labels 2^40": {"labels": labels + 2**40},
        "labels negative": {"labels": labels - 5},
        "labels uint64": {"labels": labels.astype(np.uint64) + 2**63},
        "labels of text": {"labels": labels.astype(str)},
        "labels bool": {"labels": labels > 0},
        "labels dates": {"labels": labels.astype("M8[D]")},
        "labels structured": {"labels": np.zeros(60, [("a", int)])},
        "labels longer": {"labels": np.arange(99) % 3},
        "classes too few": {"classes": np.array(["a"])},
        "classes numbers": {"classes": np.arange(3)},
        "classes twice": {"classes": np.array(["a", "a", "b"])},
        "groups short": {"groups": np.arange(3)},
        "groups NaN": {"groups": np.full(60, np.nan)},
        "groups one": {"groups": np.zeros(60, int)},
        "an unknown key": {"imgs": images},
        "train alone": {"train_images": images},
        "Fortran order": {"images": np.asfortranarray(images)},
        "big endian": {"images": images.astype(">u2")},
    }
    for number, (name, change) in enumerate(changes.items()):

        def call(number: int = number, change: dict[str, Any] = change) -> str | None:
            path = tmp / f"{number}.npz"
            np.savez(path, **{**ARRAYS, **change})
            loaded = mp.load_data(f"npz:{path}")
            for inputs, target in loaded.train.batches(8):
                if not inputs.isfinite().all() or int(target.min()) < 0 or int(target.max()) >= loaded.num_classes:
                    return "gives samples that are no images of a class"
            return None if len(loaded.train) else "an empty training split"

        yield Attempt(f"npz, {name}", call, names=(".npz",))


def _folders(tmp: Path) -> Iterator[Attempt]:
    def picture(path: Path, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, 3).save(path)

    def whole(root: Path) -> None:
        for label in ("cat", "dog"):
            for i in range(8):
                picture(root / "train" / label / f"{i}.png")

    def written(name: str, content: bytes) -> Callable[[Path], Any]:
        return lambda root: (root / "train" / "cat" / name).write_bytes(content)

    faults: dict[str, Callable[[Path], Any]] = {
        "text as png": written("x.png", b"hello"),
        "empty png": written("x.png", b""),
        "svg as png": written("x.png", b"<svg/>"),
        "half a png": lambda root: (root / "train/cat/x.png").write_bytes((root / "train/cat/0.png").read_bytes()[:40]),
        "a folder as png": lambda root: (root / "train/cat/x.png").mkdir(),
        "a broken link": lambda root: (root / "train/cat/x.png").symlink_to("nowhere"),
        "a link to itself": lambda root: (root / "train/cat/loop").symlink_to(root / "train"),
        "an empty class": lambda root: (root / "train/eel").mkdir(),
        "other files": written("Thumbs.db", b"x"),
        "hidden files": written("._0.png", b"x"),
        "markup in a class": lambda root: picture(root / "train/[red]/0.png"),
        "one pixel": lambda root: picture(root / "train/cat/x.png", (1, 1)),
        "other sizes": lambda root: picture(root / "train/cat/x.png", (9, 5)),
        "grey": lambda root: picture(root / "train/cat/x.png", mode="L"),
        "alpha": lambda root: picture(root / "train/cat/x.png", mode="RGBA"),
        "16 bit": lambda root: picture(root / "train/cat/x.png", mode="I;16"),
        "validation of other classes": lambda root: picture(root / "val/eel/0.png"),
        "an empty validation": lambda root: (root / "val").mkdir(),
        "a file as validation": lambda root: (root / "val").write_text("x"),
        "unreadable name": lambda root: picture(root / "train/cat" / "a\nb.png"),
        "capitals": lambda root: picture(root / "train/cat/X.PNG"),
    }
    for number, (name, damage) in enumerate(faults.items()):
        for image_size in (None, 8):

            def call(
                number: int = number, damage: Callable[[Path], Any] = damage, image_size: int | None = image_size
            ) -> str | None:
                root = tmp / f"images-{number}-{image_size}"
                whole(root)
                damage(root)
                loaded = mp.load_data(f"imagefolder:{root}", image_size=image_size)
                seen = sum(len(y) for _, y in loaded.train.batches(8))
                return None if seen == len(loaded.train) > 0 else f"{seen} of {len(loaded.train)} samples"

            yield Attempt(f"folder, {name}, image_size={image_size}", call)
