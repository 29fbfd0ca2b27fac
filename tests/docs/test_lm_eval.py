"""The page on lm-eval runs as it stands, where lm-eval is installed."""

import pytest
from pages import code_of, run_blocks


@pytest.mark.filterwarnings("ignore")
def test_the_page_runs(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="pip install 'metaprune[lm-eval]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    space = run_blocks(code_of("docs/lm-eval.md"), "docs/lm-eval.md")
    figures = space["result"].record["quality"]
    assert set(figures["cut"]) >= {"score"} and 0 <= figures["cut"]["score"] <= 1
    assert figures["cut"]["score"] in (0.0, 1.0)  # four equal questions
