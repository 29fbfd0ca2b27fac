"""An unseen script as a data set: twenty Armenian letters drawn with the installed DejaVu faces."""

from __future__ import annotations

import functools
import subprocess

import numpy as np
from PIL import ImageFont

from metaprune.data import Data
from metaprune.data.arrays import Arrays, Options, to_data
from metaprune_datasets.glyphs import SIZE, drawn

LETTERS, EACH = "ԱԲԳԴԵԶԷԸԹԺԻԼԽԾԿՀՁՂՃՄ", 24


def faces() -> list[str]:
    """DejaVu's files that hold the script, sorted by name."""
    found = subprocess.run(["fc-list", ":lang=hy", "file"], capture_output=True, text=True, check=True).stdout
    files = sorted(line.rstrip(": ") for line in found.splitlines() if "DejaVu" in line)
    if not files:
        raise SystemExit("no DejaVu font here (Debian: fonts-dejavu)")
    return files


@functools.cache
def _arrays() -> Arrays:
    draw = np.random.default_rng(0)
    found = [
        (drawn(letter, ImageFont.truetype(face, 3 * SIZE), draw), number, group)
        for number, letter in enumerate(LETTERS)
        for group, face in enumerate(faces())
        for _ in range(EACH)
    ]
    images, labels, groups = (np.array(column) for column in zip(*found, strict=True))
    return Arrays({"train": (images[:, None], labels)}, tuple(LETTERS), groups)


def armenian(*, seed: int, limit: int, image_size: int, channels: int) -> Data:
    """No face is on two sides of a split; images are not mirrored in training."""
    return to_data("armenian", _arrays(), Options(seed, limit, image_size, channels), flip=False)
