"""Labels that are no classes, files with odd shapes, workers that die: one DataError that names split and value."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import metaprune as mp
from metaprune.data import load_data
from metaprune.objective import Classification, Segmentation


def loaders(labels, part="train", dtype=torch.long, classes=3):
    good = torch.arange(len(labels)) % classes
    parts = {name: good for name in ("train", "val", "test")} | {part: torch.tensor(labels, dtype=dtype)}
    return tuple(DataLoader(TensorDataset(torch.randn(len(y), 4), y), 4) for y in parts.values())


def net(outputs=3):
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, outputs))


# ---------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("part", ["train", "val", "test"])
@pytest.mark.parametrize("wrong", [-1, -100, 3, 2**40])
@pytest.mark.parametrize("at", [0, 7])
def test_a_label_of_a_loader_that_is_no_class_is_named_with_its_split(part, wrong, at):
    labels = [0, 1, 2, 0, 1, 2, 0, 1]
    labels[at] = wrong
    data = mp.as_data
    tiny = mp.RecoverConfig(kind="finetune", train=mp.TrainConfig(epochs=1, batch_size=4))
    with pytest.raises(mp.DataError, match=rf"label {wrong} in the {part} data"):
        data = mp.as_data(loaders(labels, part), num_classes=3)
        mp.prune(net(), torch.randn(2, 4), budget="macs=60%", data=data, recover=tiny, progress=False)


class Skips(Classification):
    ignore_index = -100


def test_an_objective_may_declare_a_label_that_is_left_out():
    data = mp.as_data(loaders([0, 1, 2, -100]), num_classes=3, objective=Skips())
    assert [y.tolist() for _, y in data.train.batches(4)] == [[0, 1, 2, -100]]
    with pytest.raises(mp.DataError, match="label -1 in the train data"):
        mp.as_data(loaders([0, 1, 2, -1]), num_classes=3, objective=Skips())


def test_maps_and_sets_of_labels_are_checked_too():
    maps = torch.zeros(4, 2, 2, dtype=torch.long)
    maps[3, 0, 0] = 7
    split = DataLoader(TensorDataset(torch.randn(4, 3, 2, 2), maps), 4)
    with pytest.raises(mp.DataError, match="label 7 in the train data"):
        list(mp.as_data((split, split), objective=Segmentation(classes=3)).train.batches(4))
    many = DataLoader(TensorDataset(torch.randn(4, 4), torch.full((4, 3), -1.0)), 4)
    with pytest.raises(mp.DataError, match=r"label -1 .*0\.\.1"):
        list(mp.as_data((many, many), objective="multi_label").train.batches(4))


def test_a_label_does_not_make_a_million_classes():
    for top in (10**6, 2**40):
        with pytest.raises(mp.DataError, match=f"label {top} would make"):
            mp.as_data(loaders([0, 1, 2, top]))


@pytest.mark.parametrize("wrong", [-1, -100, 2**40, 10**6, 2**63])
def test_a_label_of_an_npz_that_is_no_class_allocates_nothing(tmp_path, wrong):
    labels = np.arange(40, dtype=np.uint64 if wrong > 0 else np.int64) % 4
    labels[9] = wrong
    with pytest.raises(mp.DataError, match=rf"label {wrong}"):
        load_npz(tmp_path, images=np.zeros((40, 8, 8), np.uint8), labels=labels)


# ---------------------------------------------------------------------------------------------------- files


def load_npz(folder, **arrays):
    np.savez(folder / "d.npz", **arrays)
    return load_data(f"npz:{folder / 'd.npz'}")


IMAGES, LABELS = np.zeros((40, 8, 8), np.uint8), np.arange(40) % 4


@pytest.mark.parametrize(
    "change",
    [
        {"images": IMAGES[:0], "labels": LABELS[:0]},
        {"images": np.zeros((40, 0, 0), np.uint8)},
        {"images": np.zeros((40, 1, 0, 8), np.uint8)},
        {"images": IMAGES[0]},
        {"images": np.zeros((40, 8, 8, 8), np.uint8)},
        {"labels": LABELS[:, None]},
        {"labels": LABELS.astype(float)},
        {"labels": np.array("x")},
        {"labels": LABELS[:5]},
        {"groups": np.arange(7)},
        {"groups": np.array(3)},
        {"classes": np.array("cat")},
        {"classes": np.array(["cat", "dog"])},
    ],
)
def test_an_npz_of_odd_shapes(tmp_path, change):
    with pytest.raises(mp.DataError, match="npz:"):
        load_npz(tmp_path, **{"images": IMAGES, "labels": LABELS, **change})


@pytest.mark.parametrize("offsets", [np.array([0.0, 1.0]), np.zeros((2, 2), int), np.array(3), np.array([-1, 3])])
def test_packed_images_with_odd_offsets(tmp_path, offsets):
    with pytest.raises(mp.DataError, match="offsets"):
        load_npz(tmp_path, train_jpeg=np.zeros(9, np.uint8), train_offsets=offsets, train_labels=np.zeros(1, int))


def test_files_that_are_no_npz(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES)
    (tmp_path / "b.npz").write_bytes(b"")
    (tmp_path / "c.npz").write_bytes(b"PK\3\4" + b"x" * 50)
    huge = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000000, 8, 8), }"
    np.savez(tmp_path / "d.npz", labels=LABELS)
    import zipfile

    with zipfile.ZipFile(tmp_path / "d.npz", "a") as archive:
        archive.writestr("images.npy", huge.ljust(127) + b"\n" + b"x")
    for file in ("a.npy", "b.npz", "c.npz", "d.npz"):
        with pytest.raises(mp.DataError, match=f"npz:.*{file}"):
            load_data(f"npz:{tmp_path / file}")


def folder_of(root, parts, size=8):
    for number, (part, classes) in enumerate(parts.items()):
        for name, count in classes.items():
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.full((size, size, 3), 10 * number + i, np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return f"imagefolder:{root}"


def test_an_empty_class_folder_is_named(tmp_path):
    with pytest.raises(mp.DataError, match=r"train/dog holds no images"):
        load_data(folder_of(tmp_path, {"train": {"cat": 4, "dog": 0}}))


@pytest.mark.parametrize("size", [-3, 0, 100_000, 10**12])
def test_image_sizes_that_no_image_has(tmp_path, size):
    with pytest.raises(mp.DataError, match=f"data.image_size={size}"):
        load_data(folder_of(tmp_path, {"train": {"cat": 4, "dog": 4}}), image_size=size)
    np.savez(tmp_path / "d.npz", images=IMAGES, labels=LABELS)
    with pytest.raises(mp.DataError, match=f"data.image_size={size}"):
        load_data(f"npz:{tmp_path / 'd.npz'}", image_size=size)


@pytest.mark.parametrize(
    ("parts", "judged", "carved"),
    [
        ({"train": {"a": 9, "b": 9}, "val": {"a": 3, "b": 3}}, "val", ()),
        ({"train": {"a": 9, "b": 9}, "val": {"a": 3, "b": 3}, "test": {"a": 2, "b": 2}}, "test", ()),
        ({"train": {"a": 9, "b": 9}, "test": {"a": 2, "b": 2}}, "test", ("val",)),
        ({"train": {"a": 9, "b": 9}}, "test", ("val", "test")),
    ],
)
def test_figures_are_of_the_users_own_part_where_there_is_one(tmp_path, parts, judged, carved):
    data = load_data(folder_of(tmp_path, parts))
    assert sorted(data.carved) == sorted(carved)
    assert (data.test is None) == (judged == "val")
    if judged not in carved:
        assert len(getattr(data, judged)) == sum(parts[judged].values())
    if "val" in parts:
        assert len(data.train) == 18
    sizes = data.split_sizes()
    assert sum(sizes.get(part, 0) for part in ("train", "val", "test")) == sum(sum(c.values()) for c in parts.values())


# ---------------------------------------------------------------------------------------------------- loaders


KILLED = """
import os, signal, torch
import metaprune as mp
from torch.utils.data import DataLoader, Dataset

class Dies(Dataset):
    classes = ("a", "b", "c")
    def __len__(self):
        return 8
    def __getitem__(self, index):
        if index == 5 and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.randn(4), index % 3

model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
data = mp.as_data((DataLoader(Dies(), 2, num_workers=1), DataLoader(Dies(), 2)))
try:
    mp.prune(model, torch.randn(2, 4), budget="macs=60%", method="taylor", data=data, progress=False)
except mp.DataError as error:
    print(error, flush=True)
os._exit(0)
"""


def test_a_worker_of_a_loader_that_is_killed_is_one_clear_error():
    """In a process of its own: PyTorch's handler raises wherever that one is, in pytest too."""
    said = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, check=True).stdout
    assert "DataLoader ended" in said
    assert "num_workers=0" in said


def test_training_samples_of_another_width_than_validations_are_told_before_anything_long():
    def part(width):
        return DataLoader(TensorDataset(torch.randn(8, width), torch.arange(8) % 3), 4)

    for parts, role in (((5, 4), "train"), ((4, 4, 5), "test")):
        with pytest.raises(mp.DataError, match=f"does not run on samples of user data, {role} split"):
            mp.prune(net(), torch.randn(2, 4), budget="macs=60%", data=tuple(map(part, parts)), progress=False)
