"""The command line: absurd arguments, folder names that markup would change, passwords in URLs."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from attempt import Attempt, command
from material import DIGITS

import metaprune as mp

SECRET = "S3CRETWORD"
NUMBERS = (
    "-1",
    "0",
    "1.5",
    "nan",
    "inf",
    "1e400",
    str(2**63),
    str(2**40),
    "x",
    "",
    "1979-05-27",
    "[1",
    "{",
    "true",
    "'a'",
    "\x1b[31m",
)
KEYS = (
    "rounds",
    "compensate",
    "seed",
    "form",
    "method.name",
    "method.options",
    "method.options.samples",
    "method.options.allocate",
    "constraints.round_to",
    "constraints.only",
    "recover.kind",
    "train.epochs",
    "latency.repeats",
    "latency.batch_size",
    "data.limit",
    "data.image_size",
    "model.options.width",
    "budget.macs",
    "objective.kind",
    "model.input_shape",
    "device",
    "no.such.key",
)
BUDGETS = (
    "",
    "=",
    "macs",
    "macs=",
    "macs=50",
    "macs=-1%",
    "macs=0%",
    "macs=nan%",
    "macs=inf",
    "macs=1e400",
    "mcas=50%",
    "macs=50%,macs=40%",
    "macs=50%%",
    "macs=50%;params=1",
    "macs= 5 0 %",
    "params=1",
    "latency_ms=4",
    "nonzero=0%",
    "macs=50\n%",
    "bytes=1e-300",
    "macs=५०%",
    ",",
    "macs=50%,",
    "--",
    "macs=0x10",
)
MODELS = (
    "",
    "zoo:",
    ":",
    "zoo:nope",
    "zo:mlp",
    "python:",
    "python:os:getcwd",
    "python:no.such:x",
    "python:os:nope",
    "timm:../../x",
    "timm:nope",
    "hf:/dev/null",
    "torchvision:nope",
    "builtin:x",
    "zoo:mlp:mlp",
    "mlp",
    "ZOO:MLP",
    "zoo:\n",
    "python::",
    "zoo:mlp ",
    "[red]zoo:mlp",
)
DATA = (
    "",
    "npz:",
    "npz:/dev/null",
    "npz:.",
    "npz:/",
    "imagefolder:",
    "imagefolder:/dev/null",
    "builtin:nope",
    "hf:",
    "python:os:getcwd",
    "nope",
    "npz:no.npz",
    "npz:\0",
    "npz:" + "x" * 5000,
)


def _recipe(tmp: Path) -> list[str]:
    np.savez(tmp / "d.npz", **DIGITS)
    return [
        "prune",
        "--model",
        "zoo:mlp",
        "--data",
        f"npz:{tmp / 'd.npz'}",
        "--budget",
        "macs=60%",
        "--quiet",
        "--set",
        "latency.repeats=0",
        "--device",
        "cpu",
    ]


def commands(tmp: Path) -> Iterator[Attempt]:
    """Every verb with arguments that it cannot want; what runs has to end with a whole run folder."""
    base = _recipe(tmp)

    def attempt(number: int, *arguments: str, of: list[str] | None = None, must: str = "either") -> Attempt:
        run = tmp / f"run-{number}"
        line = [*(base if of is None else of), *arguments]

        def call() -> str | None:
            command(*line, *(["--run", str(run)] if line[0] == "prune" else []))
            if line[0] == "prune" and not all((run / n).exists() for n in ("record.json", "model.safetensors")):
                return "ended with exit code 0 and without its files"
            return None

        return Attempt(" ".join(line if of is not None else arguments)[:120], call, must)  # type: ignore[arg-type]

    lines: list[tuple[tuple[str, ...], list[str] | None]] = []
    lines += [(("--set", f"{key}={value}"), None) for key in KEYS for value in NUMBERS]
    lines += [(("--budget", budget), None) for budget in BUDGETS]
    lines += [((), [*base[:1], "--model", model, *base[3:]]) for model in MODELS]
    lines += [((), [*base[:3], "--data", spec, *base[5:]]) for spec in DATA]
    for flag in (
        "--method",
        "--recover",
        "--objective",
        "--device",
        "--weights",
        "--latency-table",
        "--only",
        "--seed",
    ):
        lines += [
            ((flag, value), None) for value in ("", "x", "-1", "/dev/null", ".", "auto", "python:os:getcwd", "[/b]")
        ]
    for text in ("nothing", "=", "=3", "a.b=", ".=1", "rounds", "budget=3", "model=3", "train.epochs.x=1"):
        lines.append((("--set", text), None))
    for verb in ("report", "load", "export", "search", "adapt", "prune", "inspect", "fit", "latency", "data", "nope"):
        for argument in ((), ("/dev/null",), (".",), ("/",), ("no/such",), ("",), ("--nope",), ("a", "b", "c")):
            lines.append(((), [verb, *argument]))
    for more in (
        ("--batch", "-1"),
        ("--batch", str(2**63)),
        ("--input-shape", "-1"),
        ("--input-shape", "0", "0", "0"),
        ("--input-shape", str(2**40)),
        ("--option", "x"),
        ("--option", "width=-1"),
        ("--option", "num_classes=0"),
    ):
        lines.append(((), ["inspect", "zoo:resnet8", *more]))
    for number, (arguments, whole) in enumerate(lines):
        yield attempt(number, *arguments, of=whole)


NAMES = (
    "[red]x",
    "a[/b]",
    "[/]",
    "[bold",
    "[link=x]y",
    ":smile:",
    "a b",
    "[[x]]",
    "\\[x]",
    "é",
    "%s{0}",
    "[@click=x]y",
    "~",
    "$HOME",
    "x\ty",
    "[#ff0000]z",
)


def markup(tmp: Path) -> Iterator[Attempt]:
    """Folders whose names are markup to a terminal: written, reported, exported and shown as they are called."""
    base = _recipe(tmp)
    for name in NAMES:
        folder = tmp / name

        def run(*line: str, folder: Path = folder, shows: bool = True) -> Callable[[], str | None]:
            def call() -> str | None:
                said = command(*line)
                told = "".join(str(folder).split()) in "".join(said.split())  # terminals wrap lines and expand tabs
                return None if told or not shows else f"shows {said[-160:]!r}"

            return call

        yield Attempt(f"prune {name!r}", run(*base, "--run", str(folder)), "work")
        yield Attempt(f"prune again {name!r}", run(*base, "--run", str(folder)), "work")
        yield Attempt(f"report {name!r}", run("report", str(folder), shows=False), "work")
        yield Attempt(f"load {name!r}", run("load", str(folder), shows=False), "work")
        yield Attempt(f"export {name!r}", run("export", str(folder), "--format", "pt2", "--form", "graph"), "work")


URLS = (
    "postgresql+psycopg://u:{}@127.0.0.1:1/db",
    "postgresql+psycopg://127.0.0.1:1/db?user=u&password={}",
    "postgresql+psycopg://127.0.0.1:1/db?Password={}",
    "postgresql+psycopg://127.0.0.1:1/db?sslpassword={}",
    "postgresql+psycopg://u:a@{}@127.0.0.1:1/db",
    "postgresql+psycopg://u:a/{}@127.0.0.1:1/db",
    "postgresql+psycopg://u:a?{}@127.0.0.1:1/db",
    "postgresql+psycopg://u:a#{}@127.0.0.1:1/db",
    "postgresql+psycopg://u:{}%zz@127.0.0.1:1/db",
    "postgresql+psycopg://u:{}@[::1:1/db",
    "postgresql:u:{}@h/db",
    "postgresql+nodriver://u:{}@h/db",
    "nobackend://u:{}@h/db",
    "postgres://u:{}@127.0.0.1/db",
    "://u:{}@h",
    "postgresql+psycopg://u:{}@127.0.0.1:1/db?host=/x&options=-c%20a",
    "mysql+pymysql://u:{}@127.0.0.1:1/db",
    "mssql+pyodbc:///?odbc_connect=PWD%3D{}",
    "oracle://u:{}@127.0.0.1:1/?service_name=x",
    "u:{}@127.0.0.1",
    "POSTGRESQL+PSYCOPG://u:{}@127.0.0.1:1/db",
    "postgresql+psycopg://u:\t{}@127.0.0.1:1/db",
    "postgresql+psycopg://u:{}\n@127.0.0.1:1/db",
    "redis://:{}@127.0.0.1:1",
    "https://u:{}@127.0.0.1:1/x",
    "postgresql+psycopg://127.0.0.1:1/db?passfile=x&token={}",
    "sqlite://u:{}@h/db",
    "journal://u:{}@h/db",
    "postgresql+psycopg://u@127.0.0.1:1/db?application_name=x;password={}",
    "jdbc:postgresql://u:{}@h/db",
)


def passwords(tmp: Path) -> Iterator[Attempt]:
    """A storage's password is in no message, no traceback and no file; journal and application names are no secrets."""
    import metaprune.search.storage as storage

    storage._PAUSES_S = ()  # waiting for a server that is not there proves nothing
    recipe = tmp / "r.toml"
    np.savez(tmp / "d.npz", **DIGITS)
    for number, form in enumerate(URLS):
        url = form.format(SECRET)
        if url.startswith("journal:") or "application_name=x;" in url:
            continue
        folder = tmp / f"run-{number}"
        recipe.write_text(
            f'[model]\nspec = "zoo:mlp"\n[data]\nspec = "npz:{tmp / "d.npz"}"\n[budget]\nmacs = "60%"\n[method]\n'
            'name = "pruningnet"\n'
        )

        def from_python(url: str = url) -> str | None:
            import optuna

            try:
                with storage.opened(url, "x", optuna.samplers.RandomSampler()):
                    return "opened"
            except mp.MetapruneError as error:
                if SECRET in "".join(traceback.format_exception(error)):
                    return "the traceback shows it"
                raise

        def from_shell(url: str = url, folder: Path = folder) -> str | None:
            text = f"method.options.storage={url}"
            try:
                said = command("prune", recipe, "--run", folder, "--quiet", "--set", text)
            except mp.MetapruneError as error:
                said = str(error)
            if SECRET in said:
                return f"shown: {said[-200:]}"
            written = [p for p in folder.rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]
            return f"written to {written[0].name}" if written else None

        yield Attempt(f"opened: {form}", from_python, "refuse")
        yield Attempt(f"as an option: {form}", from_shell)
