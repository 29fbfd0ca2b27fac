"""Folders of finished runs and of fits, damaged: made whole by the same command, or refused by one line."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from attempt import Attempt, command
from attempts_files import FIRST_SEED
from material import DIGITS
from mutations import mutate_json, mutate_tensors, mutated_bytes

import metaprune as mp

RECIPE = """rounds = 2
compensate = "least-squares"
[model]
spec = "zoo:mlp"
[data]
spec = "npz:{data}"
[budget]
macs = "60%"
[method]
name = "activation"
[latency]
repeats = 0
[train]
epochs = 1
batch_size = 16
"""
FIT = (
    RECIPE.replace("rounds = 2\n", "")
    .replace('compensate = "least-squares"\n', "")
    .replace(
        'name = "activation"',
        'name = "pruningnet"\noptions = { weights = "closed-form", search = { searcher = "random" } }',
    )
)
SHOWN = ("model.safetensors", "plan.json", "network.json", "dense.safetensors")


def folders(tmp: Path) -> Iterator[Attempt]:
    """A finished run started again, reported and loaded; a fit searched again."""
    np.savez(tmp / "d.npz", **DIGITS)
    for name, text in (("run", RECIPE), ("fit", FIT)):
        (tmp / f"{name}.toml").write_text(text.replace("{data}", str(tmp / "d.npz")))
    run, fit = tmp / "source-run", tmp / "source-fit"
    command("prune", tmp / "run.toml", "--run", run, "--quiet")
    command("fit", "pruningnet", tmp / "fit.toml", "--run", fit, "--quiet")
    wanted = {name: (run / name).read_bytes() for name in SHOWN}
    for number in range(160):
        path = _drawn(run, number)

        def again(number: int = number, path: Path = path) -> str | None:
            folder = _damaged(run, tmp / "run", path, number)
            command("prune", tmp / "run.toml", "--run", folder, "--quiet")
            changed = [n for n in SHOWN if (folder / n).read_bytes() != wanted[n]]
            return f"ended with other bytes in {', '.join(changed)}" if changed else None

        yield Attempt(f"prune again, {path.name}, mutation {FIRST_SEED + number}", again)
        if number % 4 == 0:
            for verb in ("report", "load", "export"):
                yield Attempt(
                    f"{verb}, {path.name}, mutation {FIRST_SEED + number}", _verb(verb, run, tmp, path, number)
                )
    for number in range(80):
        path = _drawn(fit, number)

        def search(number: int = number, path: Path = path) -> str | None:
            folder = _damaged(fit, tmp / "fit", path, number)
            command("search", folder, "--only-search", "--budget", "macs=60%", "--quiet")
            return None

        yield Attempt(f"search, {path.name}, mutation {FIRST_SEED + number}", search)
    for name in ("gone", "a file", "empty", "of someone else's files", "read-only"):
        yield Attempt(f"a run folder that is {name}", _other_folder(name, tmp))


def _drawn(folder: Path, number: int) -> Path:
    files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file() and p.name != "log.txt")
    return random.Random(FIRST_SEED + number).choice(files)


def _damaged(source: Path, target: Path, path: Path, number: int) -> Path:
    rng = random.Random(FIRST_SEED + number)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    file = target / path
    if number % 5 == 0:
        file.unlink()
    elif number % 5 == 1:
        file.unlink()
        file.mkdir()
    elif file.suffix == ".json":
        mutate_json(file, rng)
    elif file.suffix == ".safetensors":
        mutate_tensors(file, rng)
    else:
        file.write_bytes(mutated_bytes(file.read_bytes() or b"x", rng))
    return target


def _verb(verb: str, source: Path, tmp: Path, path: Path, number: int) -> Callable[[], str | None]:
    def call() -> str | None:
        folder = _damaged(source, tmp / verb, path, number)
        command(verb, folder, *(("--format", "pt2", "--form", "graph") if verb == "export" else ()))
        return None

    return call


def _other_folder(name: str, tmp: Path) -> Callable[[], str | None]:
    def call() -> str | None:
        folder = tmp / name
        if name == "a file":
            folder.write_text("mine")
        elif name != "gone":
            folder.mkdir()
        if name == "of someone else's files":
            (folder / "mine.txt").write_text("mine")
        if name == "read-only":
            folder.chmod(0o500)
        try:
            command("prune", tmp / "run.toml", "--run", folder, "--quiet")
        except mp.MetapruneError:
            if name in ("gone", "empty"):
                return "refused"
            raise
        finally:
            if name == "a file" and folder.read_text() != "mine":
                raise AssertionError("the file was written over")
        return None

    return call
