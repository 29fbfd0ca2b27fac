"""One reader, one error: path, what is wrong, next step."""

import struct
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from metaprune.core.errors import ConfigError, DamagedFileError, DataError, DataMissingError, WeightsError, first_line
from metaprune.core.files import part_of, sweep, tensors_digest, whole_files, write_sealed, write_tensors
from metaprune.core.read import read_json, read_tensors, require_seal
from metaprune.data import load_data
from metaprune.models import load_weights
from metaprune.protocol.artifact import Artifact
from metaprune.runs.config import read_recipe
from metaprune.runs.verb_tools import toml_value

BAD_JSON = {
    "empty": b"",
    "half": b"{",
    "null": b"null",
    "list": b"[]",
    "text": b'"x"',
    "not UTF-8": b"\xff\xfe{}",
    "deep": b"[" * 200_000,
    "digits": b'{"a": ' + b"9" * 5000 + b"}",
    "long number": b'{"a": ' + b"9" * 400 + b"}",
    "half a pair": b'{"a": "\\ud800"}',
    "lacks": b"{}",
}


@pytest.mark.parametrize("kind", BAD_JSON)
def test_json_that_is_not_what_was_written(tmp_path, kind):
    path = tmp_path / "x.json"
    path.write_bytes(BAD_JSON[kind])
    with pytest.raises(DamagedFileError, match=r"x\.json.*make it again"):
        read_json(path, remedy="make it again", keys=("needed",))


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(DataMissingError, match="make it again"):
        read_json(tmp_path / "x.json", remedy="make it again")
    with pytest.raises(DamagedFileError, match="make it again"):
        read_json(tmp_path, remedy="make it again")


def test_a_seal_sees_every_change_and_may_be_absent(tmp_path):
    path = tmp_path / "x.json"
    write_sealed(path, {"a": (1, 2.5), "b": None})
    data = read_json(path, remedy="again")
    assert require_seal(path, data, "again") == {"a": [1, 2.5], "b": None}
    with pytest.raises(DamagedFileError, match="digest"):
        require_seal(path, {**data, "a": [1, 2.6]}, "again")
    assert require_seal(path, {"a": 1}, "again") == {"a": 1}


@pytest.mark.parametrize("junk", [b"", b"x" * 7, struct.pack("<Q", 2**60), struct.pack("<Q", 2) + b"{}x"])
def test_tensors_that_are_junk(tmp_path, junk):
    path = tmp_path / "x.safetensors"
    path.write_bytes(junk)
    with pytest.raises(DamagedFileError, match=r"x\.safetensors.*again"):
        read_tensors(path, remedy="again")
    with pytest.raises(WeightsError, match=r"x\.safetensors"):
        load_weights(nn.Linear(2, 2), path)


def test_a_digest_sees_one_bit(tmp_path):
    tensors = {"a": torch.randn(3), "b": torch.zeros((), dtype=torch.bfloat16), "c": torch.ones(2, dtype=torch.bool)}
    path = tmp_path / "x.safetensors"
    write_tensors(path, tensors)
    digest = tensors_digest(tensors)
    assert read_tensors(path, remedy="again", digest=digest).keys() == tensors.keys()
    path.write_bytes(path.read_bytes()[:-2] + b"\1\0")
    with pytest.raises(DamagedFileError, match="saved with it"):
        read_tensors(path, remedy="again", digest=digest)


@pytest.mark.parametrize(
    "content", [b"", b"junk", b"\x80\x02", b"PK\x03\x04", {1: torch.zeros(2)}, {"a": 1}, [1], None]
)
def test_weights_that_are_junk(tmp_path, content):
    path = tmp_path / "w.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(WeightsError, match=r"w\.pt"):
        load_weights(nn.Linear(2, 2), path)


@pytest.mark.parametrize(
    "text",
    [
        "seed = 1979-05-27",
        "a = [" * 5000,
        "seed = " + "9" * 5000,
        "seed = " + "9" * 300,
        b"\xff",
        "x",
        "[[also]]\nd = 10:00:00",
    ],
    ids=range(7),
)
def test_recipes_that_are_no_toml(tmp_path, text):
    path = tmp_path / "r.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=r"r\.toml"):
        read_recipe(path)
    assert toml_value("1979-05-27") == "1979-05-27" and toml_value("9" * 5000) == "9" * 5000


def test_an_error_without_a_message_has_a_first_line():
    assert first_line(IndexError()) == "IndexError" and first_line(ValueError("\n\na\nb")) == "a"


def test_sets_of_files_are_whole(tmp_path):
    def write(text, fail=False):
        with whole_files(tmp_path / "set") as draft:
            (draft / "a").write_text(text)
            if fail:
                raise KeyboardInterrupt
            (draft / "b").write_text(text)

    write("old")
    with pytest.raises(KeyboardInterrupt):
        write("new", fail=True)
    assert [part_of(tmp_path / "set", n).read_text() for n in "ab"] == ["old", "old"]
    write("new")
    assert [(tmp_path / "set" / n).read_text() for n in "ab"] == ["new", "new"]
    assert len(list((tmp_path / "set").iterdir())) == 2


def test_an_artifact_on_a_full_disk_stays(tmp_path, monkeypatch):
    Artifact("toy", {"a": torch.ones(2)}, {"x": 1}).save(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("metaprune.protocol.artifact.write_tensors", full)
        with pytest.raises(OSError, match="what was there is whole"):
            Artifact("toy", {"a": torch.zeros(2)}, {"x": 2}).save(tmp_path)
    again = Artifact.load(tmp_path, "toy")
    assert again.info == {"x": 1} and torch.equal(again.tensors["a"], torch.ones(2))


def test_leftovers_of_kills_are_swept_and_other_runs_are_not(tmp_path):
    for name in (".model.safetensors.a1b2c3d4", ".files.a1b2c3d4.tmp/x", "checkpoints/train/.old-epoch-0001/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    for name in (".gitignore", "model.safetensors", "networks/a/config.json", "networks/a/.plan.json.a1b2c3d4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    sweep(tmp_path)
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {".gitignore", "model.safetensors", "networks/a/config.json", "networks/a/.plan.json.a1b2c3d4"}


@pytest.mark.parametrize("fault", ["label", "many classes", "unsigned", "shape", "offsets", "array"])
def test_sizes_in_npz_are_bounded_before_anything_is_allocated(tmp_path, fault):
    images, labels = np.zeros((40, 1, 8, 8), np.uint8), np.arange(40) % 4
    path = tmp_path / "d.npz"
    if fault in ("label", "many classes", "unsigned"):
        top = {"label": 2**40, "many classes": 10**6 - 1, "unsigned": np.uint64(2**63)}[fault]
        labels = labels.astype(np.uint64 if fault == "unsigned" else np.int64)
        labels[3] = top
        np.savez(path, images=images, labels=labels)
    elif fault == "offsets":
        offsets = np.linspace(0, 4, 41)
        np.savez(path, train_jpeg=np.zeros(4, np.uint8), train_offsets=offsets, train_labels=labels)
    elif fault == "array":
        with path.open("wb") as file:
            np.save(file, images)
    else:
        shape = {"descr": "|u1", "fortran_order": False, "shape": (10**15, 1, 8, 8)}
        with zipfile.ZipFile(path, "w") as archive:
            with archive.open("images.npy", "w") as file:
                np.lib.format.write_array_header_1_0(file, shape)
                file.write(images.tobytes())
            with archive.open("labels.npy", "w") as file:
                np.save(file, labels)
    with pytest.raises(DataError, match=r"d\.npz|label"):
        load_data(f"npz:{path}")
