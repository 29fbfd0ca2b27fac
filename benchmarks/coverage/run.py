"""On how many networks does it work? Every network and tool in a process of its own; results are kept as they come.

python benchmarks/coverage/run.py --out benchmarks/coverage/results.json --resume

--only takes globs over names (`timm:*`, `hf:llama`); a killed sweep goes on with --resume.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.metadata
import json
import multiprocessing
import os
import platform
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

HERE = Path(__file__).parent
RULES = "metaprune keep_module"
CAPS_S = {"metaprune": 900, RULES: 600, "torch-pruning": 30, "torch-kirigami": 30}  # CPU seconds, imports not counted
WALL_FACTOR = 8  # a process that sleeps, or waits on a busy machine, is ended too
SERVER = multiprocessing.get_context("forkserver")
PACKAGES = ("torch", "timm", "torchvision", "transformers", "torch-pruning", "torch-kirigami")


def one(name: str, tool: str, out: Path, keeps: list[float]) -> None:
    """Measure one network with one tool in this process; `out` is rewritten whenever more is known."""
    from process import limit_cpu

    row: dict[str, Any] = {"network": name, "tool": tool}

    def save() -> None:
        out.write_text(json.dumps(row))

    save()
    limit_cpu(CAPS_S[tool])
    if tool in ("metaprune", RULES):
        import ours

        (ours.measure if tool == "metaprune" else ours.measure_rules)(name, row, save, tuple(keeps))
    else:
        import peers

        if tool == "torch-pruning" and name.startswith("timm:"):
            import timm.layers

            timm.layers.set_fused_attn(False)
        peers.measure(tool, name, row, save)
    row["finished"] = True
    save()


def quiet_one(name: str, tool: str, out: Path, keeps: list[float]) -> None:
    """`one` with everything it prints in a file beside `out`."""
    log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    one(name, tool, out, keeps)


def child(name: str, tool: str, options: argparse.Namespace) -> dict[str, Any]:
    """The row of one process, forked from one that imported everything. A crash or time-out keeps what was known."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        start = time.perf_counter()
        process = SERVER.Process(target=quiet_one, args=(name, tool, out, options.keeps))
        process.start()
        process.join(WALL_FACTOR * CAPS_S[tool])
        ended = ""
        if process.is_alive():
            process.kill()
            process.join()
            ended = f"over {WALL_FACTOR * CAPS_S[tool]} seconds of wall time"
        elif process.exitcode in (-24, -9):
            ended = f"over {CAPS_S[tool]} CPU seconds" if process.exitcode == -24 else "killed (memory?)"
        elif process.exitcode:
            said = out.with_suffix(".log").read_text(errors="replace").strip().splitlines()
            ended = (said or [f"exit status {process.exitcode}"])[-1][:300]
        row = json.loads(out.read_text()) if out.exists() else {"network": name, "tool": tool}
    if ended:
        row["ended"] = ended
        row.setdefault("reason", ended)
    return {**row, "wall_s": round(time.perf_counter() - start, 1)}


def environment() -> dict[str, Any]:
    versions = {p: importlib.metadata.version(p) for p in PACKAGES}
    return {**versions, "python": platform.python_version(), "threads": 1, "caps_cpu_s": CAPS_S}


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, (list, tuple)) else value


def sweep(options: argparse.Namespace) -> None:
    from peers import HELP

    from networks import NETWORKS, SKIPPED, source_of

    tools = ["metaprune", RULES, *[t for t in options.peers.split(",") if t]]
    report: dict[str, Any] = {"rows": []}
    if options.resume and options.out.exists():
        report = json.loads(options.out.read_text())
    done = {(r["network"], r["tool"]) for r in report["rows"]}
    outside = [n for n in NETWORKS if source_of(n) == "outside"]  # only if asked for, and with metaprune alone
    asked = options.only or [f"{s}:*" for s in ("timm", "torchvision", "hf")]
    names = [n for n in NETWORKS if any(fnmatch.fnmatchcase(n, p) for p in asked)]
    for name in [n for n in names if NETWORKS[n].missing]:
        print(f"skipped {name}: install {', '.join(NETWORKS[name].missing)}", flush=True)
        names.remove(name)
    todo = [(n, t) for t in tools if t not in options.skip for n in names if (n, t) not in done]
    todo = [(n, t) for n, t in todo if t == "metaprune" or n not in outside]
    notes = {n: e.note for n, e in NETWORKS.items() if e.note}
    report |= {"environment": environment(), "skipped": SKIPPED, "notes": notes, "help": HELP}
    report["names"] = list(NETWORKS)
    order = {n: i for i, n in enumerate(NETWORKS)}
    lock, before = Lock(), len(report["rows"])

    def measure(pair: tuple[str, str]) -> None:
        row = rounded(child(*pair, options))
        with lock:
            report["rows"].append(row)
            report["rows"].sort(key=lambda r: (order.get(r["network"], len(order)), r["tool"]))
            fresh = options.out.with_suffix(".tmp")
            fresh.write_text(json.dumps(report, indent=1) + "\n")
            fresh.replace(options.out)
            left = len(todo) + before - len(report["rows"])
            print(f"[{left} left] {brief(row)}", flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(measure, todo))


def brief(row: dict[str, Any]) -> str:
    """One line for whoever watches."""
    name = f"{row['network']} {row['tool']} {row['wall_s']:.0f} s:"
    reason = row.get("reason") or row.get("error") or ""
    if row["tool"] == RULES:
        proved = [c["proved"] for c in row.get("module_rules", {}).values()]
        return f"{name} {proved} {row.get('rules')} {reason[:140]}"
    if row["tool"] != "metaprune":
        return f"{name} {'passed' if row.get('passed') else 'FAILED ' + str(reason)[:140]} cpu {row.get('cpu_s')}"
    if not row.get("captured"):
        return f"{name} NOT CAPTURED {reason[:200]}"
    cuts = row.get("graph", {})
    text = " ".join(
        f"{k}:{'ok' if c['proved'] else 'UNPROVED ' + c.get('reason', '')[:160]}"
        + ("" if c.get("macs_equal") else f" MACS {c.get('macs')}/{c.get('macs_counted')}")
        for k, c in cuts.items()
    )
    odd = [f"{k}={row[k]}" for k in ("uncovered", "over_merged", "one_atom_groups") if row.get(k)]
    if "second_judge" in row:
        odd.append(f"judge={row['second_judge'].get('error', row['second_judge'].get('reason', ''))}")
    return (
        f"{name} {text} share {row.get('prunable_share', 0):.3f} module {row.get('module_free', {}).get('proved')} "
        f"capture {row['capture_cpu_s']:.1f} analysis {row['analysis_cpu_s']:.2f} {' '.join(odd)} {reason[:140]}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--peers", default="torch-pruning,torch-kirigami", help="'' for none")
    parser.add_argument("--skip", nargs="*", default=[], help="tools to leave out")
    parser.add_argument("--keeps", nargs="*", type=float, default=[0.3, 0.5, 0.9])
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    # the server of Python 3.11 does not take over sys.path, and says nothing if a module to preload is not found
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    SERVER.set_forkserver_preload(["preload"])
    sweep(options)


if __name__ == "__main__":
    main()
