"""The code of the pages runs, block after block, as a reader would run it: in a process of its own."""

import os
import subprocess
import sys

import pytest
import torch
from pages import ROOT, code_of, run_page
from torch.utils.data import DataLoader

import metaprune as mp

PAGES = ["docs/objectives.md", "docs/extending.md", "docs/guide.md", "docs/latency.md", "docs/transformers.md"]
CHAPTERS = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/*/*.md") if "```python" in p.read_text())
_PRELUDE = "from metaprune.core.imports import allow_torchvision_import\nallow_torchvision_import()"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page, tmp_path):
    script = tmp_path / "page.py"
    script.write_text("\n".join([_PRELUDE, *code_of(page)]))
    variables = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("page", CHAPTERS)
def test_a_page_of_a_chapter_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page(page)


def test_match_outputs_trains():
    torch.manual_seed(0)
    x, model = torch.randn(32, 8), torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    loaders = DataLoader(x, batch_size=16), DataLoader(x, batch_size=16)
    brief = mp.RecoverConfig(kind="finetune", train=mp.TrainConfig(epochs=5, lr=0.01))
    result = mp.prune(
        model, x[:2], budget="macs=50%", data=loaders, objective="match_outputs", recover=brief, progress=False
    )
    errors = {name: result.record["quality"][name]["output_error"] for name in ("dense", "cut", "recovered")}
    assert errors["dense"] == 0 and errors["recovered"] < errors["cut"]
