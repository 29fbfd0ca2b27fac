"""Spec strings: npz, image folders, Python functions, users' loaders, and the Hub (with a stand-in library)."""

import io
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from metaprune.core.errors import ConfigError, DataError, MissingDependencyError
from metaprune.core.rng import Rng
from metaprune.data import Data, ImageSplit, LoaderSplit, TensorSplit, as_data, image_source, load_data


def pixels(count, shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def jpegs(count):
    files = []
    for image in pixels(count, (8, 8, 3)):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG")
        files.append(buffer.getvalue())
    offsets = np.cumsum([0, *map(len, files)])
    return np.frombuffer(b"".join(files), np.uint8), offsets


def make_folder(root, counts, size=(8, 8), mode="RGB"):
    rng = np.random.default_rng(1)
    for part, per_class in counts.items():
        for name in ("ant", "bee"):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(per_class):
                shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
                Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{index}.png")
    return root


@pytest.mark.parametrize(
    ("shape", "expected"), [((6, 6), (1, 6, 6)), ((6, 6, 3), (3, 6, 6)), ((3, 6, 6), (3, 6, 6)), ((6, 6, 1), (1, 6, 6))]
)
def test_npz_layouts(tmp_path, shape, expected):
    np.savez(tmp_path / "d.npz", images=pixels(60, shape), labels=np.arange(60) % 3, classes=np.array(["a", "b", "c"]))
    data = load_data(f"npz:{tmp_path / 'd.npz'}")
    assert data.input_shape == expected and data.num_classes == 3 and data.classes == ("a", "b", "c")
    assert (len(data.train), len(data.val), len(data.test)) == (45, 6, 9)
    assert load_data(f"npz:{tmp_path / 'd.npz'}").digest == data.digest


def test_npz_with_parts_size_and_channels(tmp_path):
    parts = {}
    for part, count in (("train", 40), ("val", 6), ("test", 8)):
        parts |= {part + "_images": pixels(count, (6, 6)), part + "_labels": np.arange(count) % 2}
    np.savez(tmp_path / "d.npz", **parts)
    data = load_data(f"npz:{tmp_path / 'd.npz'}", image_size=12, channels=3, limit=10)
    assert (len(data.train), len(data.val), len(data.test)) == (10, 6, 8)
    assert data.input_shape == (3, 12, 12) and data.train.mean == (0.485, 0.456, 0.406)
    other = load_data(f"npz:{tmp_path / 'd.npz'}", mean=(0.1,), std=(0.2,))
    assert other.val.mean == (0.1,)


def test_npz_of_packed_jpegs(tmp_path):
    packed, offsets = jpegs(30)
    train = {"train_jpeg": packed, "train_offsets": offsets, "train_labels": (np.arange(30) % 3).astype(np.uint8)}
    np.savez(tmp_path / "d.npz", **train)
    data = load_data(f"npz:{tmp_path / 'd.npz'}")
    assert data.input_shape == (3, 8, 8) and data.num_classes == 3
    np.savez(tmp_path / "bad.npz", **{**train, "train_jpeg": packed[:-50]})
    with pytest.raises(DataError, match="offsets"):
        load_data(f"npz:{tmp_path / 'bad.npz'}")
    broken = packed.copy()
    broken[offsets[4] : offsets[4] + 20] = 0
    np.savez(tmp_path / "broken.npz", **{**train, "train_jpeg": broken})
    with pytest.raises(DataError, match="image 4 cannot be decoded"):
        load_data(f"npz:{tmp_path / 'broken.npz'}")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros(3)}, "it needs images"),
        ({"images": np.zeros((4, 6, 6)), "labels": np.zeros(4, int)}, "uint8"),
        ({"images": np.zeros((4, 6, 6), np.uint8)}, "labels is missing"),
        ({"images": np.zeros((4, 6, 6), np.uint8), "labels": np.zeros(3, int)}, r"shape \(4,\)"),
        ({"images": np.zeros((4, 6, 6), np.uint8), "labels": np.zeros(4)}, "integers"),
        ({"images": np.zeros((4, 6, 6, 2), np.uint8), "labels": np.zeros(4, int)}, "C 1 or 3"),
        ({"images": np.zeros((4, 6, 6), np.uint8), "labels": np.array([{}] * 4)}, "pickle"),
        (
            {"images": np.zeros((40, 6, 6), np.uint8), "labels": np.arange(40) % 4, "classes": np.array(["a"])},
            "no class",
        ),
    ],
)
def test_unusable_npz(tmp_path, arrays, message):
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load_data(f"npz:{tmp_path / 'd.npz'}")


def test_missing_and_damaged_npz(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load_data(f"npz:{tmp_path / 'none.npz'}")
    (tmp_path / "d.npz").write_bytes(b"PK\x03\x04 rubbish")
    with pytest.raises(DataError, match="not a readable npz"):
        load_data(f"npz:{tmp_path / 'd.npz'}")


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_image_folder(tmp_path, mode):
    make_folder(tmp_path, {"train": 20, "test": 3}, mode=mode)
    data = load_data(f"imagefolder:{tmp_path}")
    assert data.classes == ("ant", "bee") and data.input_shape == (3 if mode == "RGB" else 1, 8, 8)
    assert (len(data.train), len(data.val), len(data.test)) == (36, 4, 6)


def test_flat_folder_of_several_sizes(tmp_path):
    make_folder(tmp_path, {"": 12}, size=(20, 10))
    Image.new("RGB", (9, 30)).save(tmp_path / "ant" / "tall.png")
    with pytest.raises(DataError, match="pass image_size="):
        load_data(f"imagefolder:{tmp_path}")
    data = load_data(f"imagefolder:{tmp_path}", image_size=8)
    assert data.input_shape == (3, 8, 8) and len(data.test) == 4


def test_corrupt_image_is_named_or_skipped(tmp_path):
    make_folder(tmp_path, {"train": 20})
    bad = tmp_path / "train" / "bee" / "3.png"
    bad.write_bytes(bad.read_bytes()[:60])
    (tmp_path / "train" / "ant" / "5.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"(3|5)\.png cannot be decoded .* skip_corrupt=True"):
        load_data(f"imagefolder:{tmp_path}")
    with pytest.warns(UserWarning, match=r"skipped 2 corrupt images: .*5\.png, .*3\.png"):
        data = load_data(f"imagefolder:{tmp_path}", skip_corrupt=True)
    assert len(data.train) + len(data.val) + len(data.test) == 38


def test_large_folder_is_decoded_on_the_way(tmp_path, monkeypatch):
    make_folder(tmp_path, {"train": 20}, size=(12, 10))
    eager = load_data(f"imagefolder:{tmp_path}", image_size=8)
    monkeypatch.setattr(image_source, "_IN_MEMORY_BYTES", 0)
    data = load_data(f"imagefolder:{tmp_path}", image_size=8)
    assert isinstance(data.train, ImageSplit) and isinstance(eager.train, TensorSplit)
    for lazy, resident in ((data.train, eager.train), (data.val, eager.val), (data.test, eager.test)):
        for (x, y), (u, v) in zip(lazy.batches(4), resident.batches(4), strict=True):
            assert torch.allclose(x, u) and torch.equal(y, v)
    passes = [torch.cat([x for x, _ in data.train.batches(4, rng=Rng(0), augment=True)]) for _ in range(2)]
    assert torch.equal(*passes) and passes[0].shape == (len(data.train), 3, 8, 8)
    for path in (tmp_path / "train" / "ant").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"\.png cannot be decoded"):
        list(data.train.batches(4))


def test_folder_without_classes_or_images(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        load_data(f"imagefolder:{tmp_path / 'none'}")
    with pytest.raises(DataError, match="no class folders"):
        load_data(f"imagefolder:{tmp_path}")
    (tmp_path / "ant").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        load_data(f"imagefolder:{tmp_path}")
    make_folder(tmp_path / "x", {"train": 2, "test": 1})
    (tmp_path / "x" / "test" / "wasp").mkdir()
    with pytest.raises(DataError, match="wasp is a class"):
        load_data(f"imagefolder:{tmp_path / 'x'}")


@pytest.mark.parametrize("spec", ["mnist", "npx:file", "builtin:", "", "imagefoldr:x"])
def test_unknown_specs(spec):
    with pytest.raises(ConfigError, match="builtin:NAME"):
        load_data(spec)


def pairs(count=30, classes=3):
    return TensorDataset(torch.randn(count, 2, 4), torch.arange(count) % classes)


def test_python_spec(monkeypatch):
    module = types.ModuleType("user_data")
    module.make = lambda: (pairs(), pairs(9))
    module.bad = lambda: 3
    monkeypatch.setitem(sys.modules, "user_data", module)
    data = load_data("python:user_data:make")
    assert data.num_classes == 3 and data.name == "python:user_data:make"
    with pytest.raises(DataError, match="cannot be a int"):
        load_data("python:user_data:bad")


def test_as_data_of_datasets_and_loaders():
    data = as_data((pairs(), DataLoader(pairs(9), batch_size=4), pairs(6)))
    assert isinstance(data, Data) and as_data(data) is data
    assert data.input_shape == (2, 4) and data.classes == ("0", "1", "2") and len(data.val) == 9
    assert [len(y) for _, y in data.val.batches(2)] == [4, 4, 1]  # a loader keeps its own batches
    labels = [torch.cat([y for _, y in data.train.batches(8, rng=Rng(s))]) for s in (0, 0, 1)]
    assert torch.equal(labels[0], labels[1]) and not torch.equal(labels[0], labels[2])
    assert torch.equal(torch.cat([y for _, y in data.train.batches(8)]), torch.arange(30) % 3)
    assert as_data((pairs(), pairs()), num_classes=10).num_classes == 10


def test_reading_a_dataset_leaves_global_random_state():
    source = LoaderSplit(pairs())
    state = torch.random.get_rng_state()
    list(source.batches(4, rng=Rng(0)))
    assert torch.equal(state, torch.random.get_rng_state())


class Nameless(torch.utils.data.Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.zeros(1, 2, 2), index % 4


def test_classes_inferred_from_validation_labels():
    assert as_data((Nameless(), Nameless())).num_classes == 4


@pytest.mark.parametrize("wrong", [None, 3, (pairs(),), (pairs(), 3), (pairs(), [1, 2]), (pairs(0), pairs())])
def test_as_data_of_wrong_things(wrong):
    with pytest.raises(DataError):
        as_data(wrong)


class FakeTable:
    """The little of a `datasets` table that is used."""

    Image, ClassLabel = type("Image", (), {}), type("ClassLabel", (), {})

    def __init__(self, count):
        label = self.ClassLabel()
        label.names = ["ant", "bee"]
        self.features = {"img": self.Image(), "label": label}
        self.images = [Image.fromarray(p) for p in pixels(count, (8, 8, 3))]
        self.labels = [i % 2 for i in range(count)]

    def __getitem__(self, key):
        return self.labels if key == "label" else {"img": self.images[key], "label": self.labels[key]}


def test_hub_with_a_stand_in(monkeypatch):
    def load_dataset(name, **_):
        if name != "some/set":
            raise ConnectionError("offline")
        return {"train": FakeTable(40), "test": FakeTable(10)}

    library = types.ModuleType("datasets")
    library.load_dataset = load_dataset
    library.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "datasets", library)
    data = load_data("hf:some/set")
    assert data.classes == ("ant", "bee") and (len(data.train), len(data.val), len(data.test)) == (36, 4, 10)
    with pytest.raises(DataError, match="offline"):
        load_data("hf:other/set")


def test_hub_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"metaprune\[hf\]"):
        load_data("hf:some/set")
