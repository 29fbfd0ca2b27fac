"""Six kinds of tasks on real data, each as a recipe and as a call of `prune`: `python benchmarks/jobs/run.py`.

Get the data first: `metaprune data get` fashion-mnist, animal-shapes, emoji, brown, smollm2-135m and centerface.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import metaprune as mp
from metaprune.models import create
from metaprune.runs.config import RunConfig, read_recipe
from metaprune.runs.inputs import load_inputs
from metaprune.runs.run import run

JOBS = ("clothes", "two_garments", "angle", "animals", "faces", "language")
RECIPES = Path(__file__).parents[2] / "examples" / "jobs"
sys.path.insert(0, str(RECIPES))


def by_recipe(config: RunConfig, folder: Path) -> dict[str, Any]:
    """The record of `metaprune prune RECIPE`, and its seconds."""
    start = time.perf_counter()
    record = run(config, folder, progress=False)
    return figures(record, time.perf_counter() - start)


def by_call(config: RunConfig, folder: Path) -> dict[str, Any]:
    """The same by `prune`, from the dense network that the recipe trained."""
    inputs = load_inputs(config)  # for its data and example inputs; the model is made anew
    if config.train is None:
        model = create(config.model.spec, **inputs.options)
    else:
        model = create(config.model.spec, weights=folder / "dense.safetensors", **inputs.options)
    start = time.perf_counter()
    result = mp.prune(
        model,
        inputs.args,
        inputs.kwargs,
        budget=config.budget,
        method=config.method.name,
        method_options=config.method.options,
        data=inputs.data,
        objective={"kind": config.objective.kind, **config.objective.options},
        recover=config.recover,
        constraints=config.constraints,
        batch_size=config.batch_size,
        seed=config.seed,
        progress=False,
    )
    return figures(result.record, time.perf_counter() - start)


def figures(record: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What the table needs of a record."""
    metric = record["objective"]["primary"]
    parts = ("dense", "cut", "recovered")
    before, after = record["cost"]["before"], record["cost"]["after"]
    return {
        "metric": metric,
        **{part: record["quality"][part][metric["name"]] for part in parts},
        "share": {m: after[m] / before[m] for m in ("macs", "params")},
        "params": before["params"],
        "proof": record["proof"]["error"],
        "seconds": round(seconds, 1),
        "phases": {phase: round(s, 1) for phase, s in record["seconds"].items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.json"))
    parser.add_argument("--only", nargs="+", choices=JOBS, default=JOBS)
    parser.add_argument("--ways", nargs="+", choices=("recipe", "call"), default=("recipe", "call"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=Path, help="folder for the runs; a job that is finished there is not repeated")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    runs = arguments.runs or Path(tempfile.mkdtemp(prefix="metaprune-jobs-"))
    results = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    for name in arguments.only:
        config = read_recipe(RECIPES / f"{name}.toml")
        row = results.setdefault(name, {})
        row |= {"task": config.objective.kind, "method": config.method.name, "recover": config.recover.kind}
        for way in arguments.ways:
            row[way] = (by_recipe if way == "recipe" else by_call)(config, runs / name)
            values = ", ".join(f"{part} {row[way][part]:.4g}" for part in ("dense", "cut", "recovered"))
            print(f"{name} by {way}: {row[way]['metric']['name']} {values}; {row[way]['seconds']:.0f} s", flush=True)
            arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
