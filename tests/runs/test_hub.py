"""Upload and download at the seam of huggingface_hub, without a network; the card says what the record says."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from language_networks import example, language_model
from torch.utils.data import TensorDataset

import metaprune as mp
from metaprune.hub import model_card


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub that is a folder; `fetched` holds the patterns that were asked for."""
    made = {"private": {}, "fetched": []}

    def create_repo(self, repo, *, private, exist_ok):
        made["private"][repo] = private

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, tmp_path / "hub" / repo_id)
        return f"https://hub/{repo_id}"

    def snapshot_download(repo, *, allow_patterns):
        made["fetched"] += allow_patterns
        if not (tmp_path / "hub" / repo).exists():
            raise OSError(f"there is no {repo}")
        for file in (tmp_path / "hub" / repo).iterdir():
            if any(file.match(p) for p in allow_patterns):
                (tmp_path / "cache").mkdir(exist_ok=True)
                shutil.copy(file, tmp_path / "cache" / file.name)
        return str(tmp_path / "cache")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    return made


def test_a_network_of_ones_own_goes_up_and_down(hub, tmp_path):
    x = torch.randn(32, 8)
    data = (TensorDataset(x, x.sum(1, keepdim=True)),) * 2
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    result = mp.prune(
        model, x[:2], budget="params=50%", method="magnitude", data=data, objective="regression", progress=False
    )
    assert result.push_to_hub("me/small-net", private=True, base_model="me/net") == "https://hub/me/small-net"
    assert hub["private"] == {"me/small-net": True}
    (tmp_path / "hub/me/small-net/model.py").write_text("raise SystemExit")
    again = mp.load("me/small-net", form="graph")
    assert hub["fetched"] == ["*.json", "*.safetensors"] and not list((tmp_path / "cache").glob("*.py"))
    torch.testing.assert_close(again(x), result.model(x))
    card = (tmp_path / "hub/me/small-net/README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["library_name"] == "metaprune" and head["base_model"] == "me/net"
    assert f"{result.pruned.error:.1e}" in card and "`magnitude`" in card and 'mp.load("me/small-net")' in card
    assert f"{result.record['cost']['after']['params']:,}" in card and "rmse" in card.lower()


@pytest.mark.parametrize("keep_config", [True, False])
def test_a_transformers_model_goes_up_as_its_own_folder(keep_config, hub, tmp_path):
    model = language_model("llama")
    model.config._name_or_path = "them/llama"
    options = {"keep_config": True} if keep_config else {"ignore": ["*:head_dims", "*:value_dims", "*:stream"]}
    result = mp.prune(model, None, example("llama"), budget="params=85%", method="random", progress=False, **options)
    result.push_to_hub("me/llama")
    files = {p.name for p in (tmp_path / "hub/me/llama").iterdir()}
    assert files >= {"config.json", "model.safetensors", "README.md", "record.json"} and "network.json" not in files
    again = mp.load("me/llama")
    with torch.no_grad():
        assert torch.equal(again(**example("llama")).logits, result.model(**example("llama")).logits)
    assert "base_model: them/llama" in (tmp_path / "hub/me/llama/README.md").read_text()


def test_what_is_nowhere_is_said_in_one_line(hub, tmp_path):
    with pytest.raises(mp.DataMissingError, match=r"me/nothing is no folder here, and the Hub did not give it"):
        mp.load("me/nothing")
    with pytest.raises(mp.DataMissingError):
        mp.load(Path("me/nothing"))  # a path is never fetched
    assert hub["fetched"] == ["*.json", "*.safetensors"]
    x = torch.ones(2, 4)
    result = mp.prune(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)), x, budget="params=80%")
    with pytest.raises(mp.DataError, match="OWNER/NAME"):
        result.push_to_hub("../somewhere/else")
    assert "|" not in model_card({**result.record, "method": "a"}, "me/x").split("# x")[1].split("##")[0]
