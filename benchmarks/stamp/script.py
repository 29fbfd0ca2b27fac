"""An unseen script as a data set: twenty Armenian letters drawn with the installed DejaVu faces."""

from __future__ import annotations

import functools
import subprocess

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from metaprune.data import Data
from metaprune.data.arrays import Arrays, Options, to_data

LETTERS, EACH, SIZE = "ԱԲԳԴԵԶԷԸԹԺԻԼԽԾԿՀՁՂՃՄ", 24, 28


def faces() -> list[str]:
    """DejaVu's files that hold the script, sorted by name."""
    found = subprocess.run(["fc-list", ":lang=hy", "file"], capture_output=True, text=True, check=True).stdout
    files = sorted(line.rstrip(": ") for line in found.splitlines() if "DejaVu" in line)
    if not files:
        raise SystemExit("no DejaVu font here (Debian: fonts-dejavu)")
    return files


def glyph(letter: str, face: str, draw: np.random.Generator) -> np.ndarray:
    """uint8 [SIZE, SIZE]: white on black, turned, sheared, moved, faded, with noise."""
    big = Image.new("L", (4 * SIZE, 4 * SIZE))
    ImageDraw.Draw(big).text((2 * SIZE, 2 * SIZE), letter, 255, ImageFont.truetype(face, 3 * SIZE), anchor="mm")
    angle, shear, scale = draw.uniform(-0.35, 0.35), draw.uniform(-0.3, 0.3), draw.uniform(0.8, 1.25)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn = turn @ np.array([[1.0, shear], [0.0, 1.0]]) * scale
    shift = 2 * SIZE * (1 - turn.sum(axis=1)) + draw.uniform(-8, 8, 2)
    matrix = (*turn[0], shift[0], *turn[1], shift[1])
    moved = big.transform(big.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    small = np.asarray(moved.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float64)
    noisy = draw.uniform(0.4, 1.0) * small + draw.normal(0, 25, small.shape)
    return noisy.clip(0, 255).astype(np.uint8)


@functools.cache
def _arrays() -> Arrays:
    draw = np.random.default_rng(0)
    found = [
        (glyph(letter, face, draw), number, group)
        for number, letter in enumerate(LETTERS)
        for group, face in enumerate(faces())
        for _ in range(EACH)
    ]
    images, labels, groups = (np.array(column) for column in zip(*found, strict=True))
    return Arrays({"train": (images[:, None], labels)}, tuple(LETTERS), groups)


def armenian(*, seed: int, limit: int, image_size: int, channels: int) -> Data:
    """No face is on two sides of a split; images are not mirrored in training."""
    return to_data("armenian", _arrays(), Options(seed, limit, image_size, channels), flip=False)
