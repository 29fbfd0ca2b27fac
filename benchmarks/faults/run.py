"""Attempts to break metaprune, by area: it works rightly, or one error says cause and next step, and nothing is lost.

OMP_NUM_THREADS=1 python benchmarks/faults/run.py --out benchmarks/faults/faults.json

`--only AREA ...` does those again and keeps the others' rows. Areas in `HELD_OUT` were tried once, after what the
others had found was mended.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import material
import torch
from attempt import Attempt, verdict

AREAS: dict[str, tuple[str, str]] = {
    "archives": ("attempts_files", "archives"),
    "plans": ("attempts_files", "plans"),
    "artifacts": ("attempts_files", "artifacts"),
    "checkpoints": ("attempts_files", "checkpoints"),
    "recipes, configs, records": ("attempts_files", "configs"),
    "data files, bytes and headers": ("attempts_files", "npz_bytes"),
    "Python API": ("attempts_api", "calls"),
    "this week's parameters": ("attempts_api", "together"),
    "methods' options": ("attempts_api", "options"),
    "command line": ("attempts_cli", "commands"),
    "folder names with markup": ("attempts_cli", "markup"),
    "passwords in URLs": ("attempts_cli", "passwords"),
    "models": ("attempts_models", "models"),
    "budgets recounted": ("attempts_models", "budgets"),
    "data in memory and folders": ("attempts_data", "data"),
    "damaged run and fit folders": ("attempts_folders", "folders"),
}
HELD_OUT = ("data in memory and folders", "damaged run and fit folders")


def tried(area: str, only: str = "") -> dict[str, Any]:
    """Do an area's attempts, in a folder of its own."""
    module, function = AREAS[area]
    attempts: Callable[[Path], Iterator[Attempt]] = getattr(__import__(module), function)
    count, failed, begun, here = 0, [], time.process_time(), Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for attempt in attempts(Path(folder)):
                if only not in attempt.name:
                    continue
                count += 1
                fault = verdict(attempt)
                if fault is not None:
                    name, fault = (_placeless(text, folder) for text in (attempt.name, fault))
                    failed.append({"attempt": name, "fault": fault})
                    print(f"  {area}: {name}: {fault}", flush=True)
        finally:
            os.chdir(here)
    row = {"area": area, "tried": count, "held": count - len(failed), "held_out": area in HELD_OUT}
    return {**row, "cpu_s": round(time.process_time() - begun, 1), "failed": failed}


def _placeless(text: str, folder: str) -> str:
    """Without the places of this machine, and such that any file holds it."""
    text = text.replace(folder, "FOLDER").replace(str(material.ROOT), ".")
    return text.encode("utf-8", "backslashreplace").decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="without it, only printed")
    parser.add_argument("--only", nargs="*", default=[a for a in AREAS if a not in HELD_OUT], choices=AREAS)
    parser.add_argument("--held-out", action="store_true", help="the areas kept out of the development, too")
    parser.add_argument("--attempt", default="", help="only attempts whose name holds this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, Any] = {}
    if options.out is not None and options.out.exists():
        rows = {row["area"]: row for row in json.loads(options.out.read_text())["rows"]}
    for area in [*options.only, *(HELD_OUT if options.held_out else ())]:
        row = rows[area] = tried(area, options.attempt)
        print(f"{area}: {row['held']} of {row['tried']} held, {row['cpu_s']} CPU s", flush=True)
        if options.out is not None:
            environment = {"torch": torch.__version__, "python": platform.python_version(), "threads": 1}
            ordered = [rows[name] for name in AREAS if name in rows]
            report = {"environment": environment, "rows": ordered}
            options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
