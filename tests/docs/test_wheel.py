"""The wheel: built from a copy, installed on its own, and the README's first example runs with it."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from pages import ROOT, code_of

BUILT_OF = ("pyproject.toml", "README.md", "LICENSE", "src")


def _pip(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", "-q", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder that holds what the wheel brings, and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in BUILT_OF:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    _pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder / "out"), str(folder))
    (wheel,) = (folder / "out").glob("metaprune-*.whl")
    _pip("install", "--no-deps", "--no-index", "--target", str(folder / "installed"), str(wheel))
    return folder / "installed"


def _environment(installed: Path) -> dict[str, str]:
    """The wheel first, then the packages that it depends on; an editable install of the checkout comes after it."""
    torch = find_spec("torch")
    assert torch is not None and torch.origin is not None
    path = os.pathsep.join([str(installed), str(Path(torch.origin).parents[1])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_the_examples_of_the_readme_run_from_the_wheel(installed, tmp_path):
    check = f"import metaprune; assert metaprune.__file__.startswith({str(installed)!r}), metaprune.__file__"
    code = "\n".join([check, *code_of("README.md")])
    environment = _environment(installed)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    assert "prunable, group" in done.stdout
    assert (tmp_path / "runs/example/model.safetensors").exists()


def test_the_wheel_brings_the_command_line_and_its_data(installed, tmp_path):
    command = [sys.executable, str(installed / "bin/metaprune"), "methods"]
    done = subprocess.run(
        command, cwd=tmp_path, env=_environment(installed), check=True, capture_output=True, text=True
    )
    assert "pruningnet" in done.stdout
    data = [p for pattern in ("*.md", "*.jinja", "*.css", "py.typed") for p in (ROOT / "src/metaprune").rglob(pattern)]
    assert data and not [p for p in data if not (installed / p.relative_to(ROOT / "src")).exists()]
