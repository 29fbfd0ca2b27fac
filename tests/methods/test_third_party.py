"""A method in a package of somebody else (examples/third_party_method), from the command line to its tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "third_party_method"
MODEL = ("--model", "zoo:resnet8", "--budget", "macs=50%", "--set", "latency.repeats=0", "--quiet")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that holds the package as pip installs it."""
    folder = tmp_path_factory.mktemp("third_party")
    source = shutil.copytree(EXAMPLE, folder / "source")
    pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([sys.executable, *pip, "--target", str(folder / "site"), str(source)], check=True)
    return folder / "site"


def child(installed: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(installed), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def metaprune(installed: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return child(installed, "-m", "metaprune.cli.main", *arguments, cwd=cwd)


def test_it_is_listed(installed, tmp_path):
    listed = metaprune(installed, "methods", cwd=tmp_path)
    assert "reader_norm   Reader norm: how much the layers after a channel weigh it." in listed.stdout, listed.stderr


def test_it_prunes_and_reports(installed, tmp_path):
    options = ("--method", "reader_norm", "--set", "method.options.power=2", "--run", "run")
    done = metaprune(installed, "prune", *MODEL, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "run" / "report.html").read_text()
    assert 'id="reader-norm"' in page and "read least" in page
    assert '"power": 2' in (tmp_path / "run" / "config.json").read_text()


def test_its_options_are_checked_like_ours(installed, tmp_path):
    missing = metaprune(installed, "prune", *MODEL, "--method", "reader_norm", cwd=tmp_path)
    assert missing.returncode == 2 and "key reader_norm.power is missing" in missing.stderr


def test_its_verb(installed, tmp_path):
    done = metaprune(installed, "reader-norms", "zoo:resnet8", cwd=tmp_path)
    assert done.returncode == 0 and "of the mean" in done.stdout, done.stderr


def test_its_conformance(installed, tmp_path):
    tests = str(EXAMPLE / "tests")
    done = child(installed, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", tests, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-2000:]
