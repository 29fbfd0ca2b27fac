"""Run folders: one process each, finished means whole, and code that a stranger's config names is asked about."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from torch import nn

import metaprune as mp
from metaprune.cli.main import main
from metaprune.core.errors import ConfigError
from metaprune.core.strict import from_dict
from metaprune.runs.config import RunConfig, read_recipe
from metaprune.runs.fitted import fitted_config
from metaprune.runs.folder import RunFolder
from metaprune.runs.lock import locked
from metaprune.runs.run import run
from metaprune.runs.trust import code_in

RECIPE = {
    "model": {"spec": "zoo:mlp", "input_shape": [1, 28, 28]},
    "budget": {"macs": "50%"},
    "latency": {"repeats": 0},
    "device": "cpu",
}


def config(**changes):
    return from_dict(RunConfig, {**RECIPE, **changes})


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    run(config(), folder, progress=False)
    return folder


@pytest.fixture
def finished(source, tmp_path):
    return shutil.copytree(source, tmp_path / "run")


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name not in ("log.txt", "record.json", "report.html")}


HOLD = """
import sys, time
from pathlib import Path
from metaprune.runs.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_names_its_holder_and_goes_with_it(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=rf"another process works in .*pid {holder.pid} on .*, since 20"):
            run(config(), tmp_path, progress=False)
        assert not (tmp_path / "config.json").exists()
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()
    with locked(tmp_path), pytest.raises(ConfigError, match=f"pid {os.getpid()}"), locked(tmp_path):
        pass
    assert not (tmp_path / ".lock").exists()
    assert run(config(), tmp_path, progress=False)["files"]  # what the killed one left is in nobody's way


def test_a_config_cannot_change_under_a_run(tmp_path):
    first = RunFolder(tmp_path, config())
    with first.held():
        before = (tmp_path / "config.json").read_text()
        with pytest.raises(ConfigError, match="another process"):
            run(config(seed=5), tmp_path, progress=False)
        assert (tmp_path / "config.json").read_text() == before
        (tmp_path / "config.json").write_text("{}")
    assert (tmp_path / "config.json").read_text() == before


PARTS = ["model.safetensors", "dense.safetensors", "network.json", "plan.json", "record.json"]


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("fault", ["gone", "half", "other"])
def test_a_run_without_one_of_its_files_is_not_finished(finished, name, fault):
    whole, path = contents(finished), finished / name
    if fault == "gone":
        path.unlink()
    elif fault == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_bytes(b"{}")
    assert RunFolder(finished, config()).finished is None
    run(config(), finished, progress=False)
    assert contents(finished) == whole and RunFolder(finished, config()).finished is not None


@pytest.mark.parametrize("fault", ["gone", "half"])
def test_a_missing_report_is_written_again_and_nothing_else(finished, fault, monkeypatch):
    page = finished / "report.html"
    page.unlink() if fault == "gone" else page.write_bytes(page.read_bytes()[:1000])
    monkeypatch.setattr("metaprune.runs.run._run", None)
    run(config(), finished, progress=False)
    assert page.read_bytes().rstrip().endswith(b"</html>")


def test_a_finished_run_on_a_read_only_disk(finished, monkeypatch):
    def refuses(*_, **__):
        raise OSError(30, "Read-only file system")

    (finished / "report.html").unlink()
    for target in ("tempfile.mkstemp", "tempfile.mkdtemp", "os.open", "pathlib.Path.mkdir"):
        monkeypatch.setattr(target, refuses)
    assert run(config(), finished, progress=False)["files"]


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "[[[["])
@pytest.mark.parametrize("name", ["config.json", "record.json"])
def test_damaged_files_of_a_run_are_one_line(finished, text, name, capsys):
    (finished / name).write_text(text)
    for verb in (["report", str(finished)], ["prune", str(finished / name), "--run", str(finished)]):
        assert main(verb) in (0, 2)
    assert main(["prune", str(finished / name)]) == 2
    assert name in capsys.readouterr().err


def make_model(width=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 3))


MINE = f"python:{__name__}:make_model"
EVIL = "python:stranger_code:make"


@pytest.fixture
def stranger(finished, tmp_path, monkeypatch):
    """A folder that names code of its maker's, and that code, where it can be imported."""
    monkeypatch.setenv("METAPRUNE_CACHE", str(tmp_path / "cache"))
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\ndef make(): raise ValueError\nclass Method: pass\n"
    (tmp_path / "stranger_code.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "stranger_code", raising=False)
    return finished


def rewrite(folder, **changes):
    for name in ("config.json", "record.json"):
        data = json.loads((folder / name).read_text())
        (data if name == "config.json" else data["config"]).update(changes)
        (folder / name).write_text(json.dumps(data))


CODE = {
    "model": {"model": {**RECIPE["model"], "spec": EVIL}},
    "method": {"method": {"name": "python:stranger_code:Method", "options": {}}},
    "data": {"data": {"spec": EVIL}},
    "optimizer": {"train": {"optimizer": EVIL}},
    "remote code": {"model": {"spec": "hf:owner/name", "options": {"trust_remote_code": True}}},
    "storage": {"method": {"name": "pruningnet", "options": {"storage": "postgresql://u:S3CRET@h/d"}}},
}


@pytest.mark.parametrize("where", CODE)
def test_code_of_a_stranger_is_named_and_not_run(stranger, tmp_path, where, capsys):
    rewrite(stranger, **CODE[where])
    (named,) = code_in(CODE[where])
    out = ["--run", str(tmp_path / "out")]
    for verb in (
        ["prune", str(stranger / "record.json"), *out],
        ["prune", str(stranger / "config.json"), *out],
        ["export", str(stranger), "--format", "pt2"],
    ):
        assert main(verb) == 2
        text = capsys.readouterr().err
        assert named in text and "--trust" in text and text.count("\n") == 1 and "S3CRET" not in text
    with pytest.raises(ConfigError, match="another config"):  # compared, not imported
        RunFolder(stranger, config())
    assert "stranger_code" not in sys.modules and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("verb", ["search", "adapt"])
def test_a_fit_of_a_stranger_is_asked_about(stranger, tmp_path, verb, capsys):
    method = "pruningnet" if verb == "search" else "stamp"
    rewrite(stranger, data={"spec": EVIL}, method={"name": method, "options": {}})
    (stranger / "artifact.json").write_text("{}")
    more = ["--data", "builtin:digits", "--budget", "params=50%"] if verb == "adapt" else ["--only-search"]
    assert main([verb, str(stranger), *more]) == 2
    assert EVIL in (text := capsys.readouterr().err) and "--trust" in text
    assert "stranger_code" not in sys.modules
    tables = ("budget", "model", "train")
    for how in ({"trust": True}, {"given": [EVIL]}):
        assert fitted_config(stranger, {}, method, tables, "", **how).data.spec == EVIL


def test_an_own_folder_is_known_until_its_config_is_edited(tmp_path, monkeypatch):
    monkeypatch.setenv("METAPRUNE_CACHE", str(tmp_path / "cache"))
    own = config(model={"spec": MINE, "input_shape": [1, 28, 28]})
    run(own, tmp_path / "run", progress=False)
    assert (tmp_path / "cache" / "run-key").stat().st_mode & 0o077 == 0
    moved = shutil.move(tmp_path / "run", tmp_path / "moved")
    assert read_recipe(moved / "record.json").to_dict() == own.to_dict()
    assert main(["export", str(moved), "--format", "pt2", "--form", "graph"]) == 0
    rewrite(moved, model={"spec": EVIL})
    with pytest.raises(ConfigError, match=r"stranger_code.*--trust"):
        read_recipe(moved / "record.json")
    monkeypatch.setenv("METAPRUNE_CACHE", str(tmp_path / "another user"))
    rewrite(moved, model={"spec": MINE, "input_shape": [1, 28, 28]})
    with pytest.raises(ConfigError, match="--trust"):
        read_recipe(moved / "record.json")
    assert read_recipe(moved / "record.json", trust=True).model.spec == MINE
    assert read_recipe(moved / "record.json", {"model.spec": MINE}).model.spec == MINE  # given by this user


def test_load_shows_what_a_folder_holds(finished, capsys):
    assert main(["load", str(finished), "--inspect"]) == 0
    text = capsys.readouterr().out
    assert "zoo:mlp" in text and "digests" in text and "agree" in text and "operators" in text
    assert main(["load", str(finished)]) == 0
    (finished / "model.safetensors").write_bytes(b"x")
    assert main(["load", str(finished), "--inspect"]) == 2
    assert "save the network again" in capsys.readouterr().err
    assert mp.Plan.from_dict(json.loads((finished / "plan.json").read_text()))


def test_what_kills_left_is_swept_when_a_run_starts(tmp_path):
    folder = tmp_path / "run"
    with RunFolder(folder, config()).held():
        pass
    (folder / ".model.safetensors.abcd1234").write_text("x")
    (folder / "checkpoints" / "train" / ".old-epoch-0001").mkdir(parents=True)
    time.sleep(0.01)
    run(config(), folder, progress=False)
    assert not [p for p in folder.rglob(".*")]
