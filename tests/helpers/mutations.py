"""Seeded mutations of files that the product wrote: values, keys, types, bytes, tensors."""

import copy
import json
import random
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

VALUES = [None, True, -1, 0, 3, 2**40, 10**400, 1e308, float("nan"), "", "x", "../x", "python:os:getcwd", [], {}, [[]]]
VALUES += [{"node": "x"}, {"dict": {"a": 1}}, "\ud800", "__class__", [0.5], "0", {"tuple": [1]}]


def places(value, path=()):
    """Every (container path, key) of plain data."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield path, key
        yield from places(part, (*path, key))


def mutated_data(data, rng: random.Random):
    """A copy with one or two values replaced, dropped, added, swapped, or of another type."""
    data = copy.deepcopy(data)
    for _ in range(rng.choice((1, 1, 1, 2))):
        path, key = rng.choice(list(places(data)) or [((), None)])
        if key is None:
            return rng.choice(VALUES)
        held = data
        for part in path:
            held = held[part]
        kind = rng.randrange(5)
        if kind == 0:
            held[key] = rng.choice(VALUES)
        elif kind == 1:
            del held[key]
        elif kind == 2 and isinstance(held, dict):
            held[rng.choice(["x", "", "a.b", "a=1, b", "__init__", 3])] = rng.choice(VALUES)
        elif kind == 3:
            other_path, other = rng.choice(list(places(data)))
            value = data
            for part in (*other_path, other):
                value = value[part]
            held[key] = copy.deepcopy(value)
        else:
            old = held[key]
            held[key] = str(old) if not isinstance(old, str) else [old]
    return data


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """A bit flipped, a part cut off, doubled, or replaced."""
    kind, at = rng.randrange(5), rng.randrange(len(data))
    if kind <= 1:
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    if kind == 2:
        return data[:at]
    if kind == 3:
        return data[:at] + data[at // 2 :]
    return rng.choice(
        [b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", b"[" * 100_000, b"9" * 5000, b'{"a": 1}', data[:at] + b"\0"]
    )


def mutate_json(path: Path, rng: random.Random, edit=None) -> None:
    """Change the data or the bytes of a JSON file. `edit` is applied to the changed data, as to drop a digest."""
    if rng.random() < 0.3:
        path.write_bytes(mutated_bytes(path.read_bytes(), rng))
        return
    data = mutated_data(json.loads(path.read_text()), rng)
    if edit is not None and isinstance(data, dict):
        edit(data)
    path.write_text(json.dumps(data))


def mutate_tensors(path: Path, rng: random.Random) -> None:
    """Rename, reshape, retype, drop or change a tensor, or damage the bytes."""
    if rng.random() < 0.4:
        path.write_bytes(mutated_bytes(path.read_bytes(), rng))
        return
    tensors = load_file(path)
    name = rng.choice(sorted(tensors))
    tensor, kind = tensors.pop(name), rng.randrange(6)
    if kind == 0:
        tensors[rng.choice(["forward", "0", "a..b", "", f"{name}.x", "training", "_parameters", "x"])] = tensor
    elif kind == 1:
        tensors[name] = tensor.reshape(-1) if tensor.dim() != 1 else tensor.reshape(1, -1)
    elif kind == 2:
        tensors[name] = torch.zeros(rng.choice([(0,), (1,), (7, 3)]))
    elif kind == 3:
        tensors[name] = tensor.to(rng.choice([torch.int64, torch.float16, torch.bool, torch.complex64]))
    elif kind == 4 and tensor.numel() and tensor.is_floating_point():
        tensors[name] = tensor + rng.choice([1.0, float("nan"), float("inf")])
    save_file(tensors, path)
