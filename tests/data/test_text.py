"""Text: documents, tokenised, split by document and packed."""

import json
import sys
import types

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from metaprune.core.errors import ConfigError, DataError, MissingDependencyError
from metaprune.core.strict import from_dict
from metaprune.data import load_data
from metaprune.data.text import read_documents
from metaprune.runs.config import RunConfig
from metaprune.runs.run import run

WORDS = [f"w{i}" for i in range(30)]


@pytest.fixture
def tokenizer(tmp_path):
    vocabulary = {word: i for i, word in enumerate([*WORDS, "?"])}
    encoder = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    encoder.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path / "model"
    folder.mkdir()
    encoder.save(str(folder / "tokenizer.json"))
    return str(folder)


def documents(count, words=20):
    return [" ".join(WORDS[(7 * i + k) % 30] for k in range(words)) for i in range(count)]


def ids(split):
    return torch.cat([batch["input_ids"] for batch, _ in split.batches(4)])


def test_documents_are_files_lines_or_paragraphs(tmp_path):
    (tmp_path / "books" / "more").mkdir(parents=True)
    (tmp_path / "books" / "a.txt").write_text("one\n\ntwo")
    (tmp_path / "books" / "more" / "b.md").write_text("three")
    (tmp_path / "books" / "c.png").write_bytes(b"\xff")
    (tmp_path / "lines.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in ("four", "five")) + "\n")
    assert read_documents(tmp_path / "books") == ["one\n\ntwo", "three"]
    assert read_documents(tmp_path / "books" / "a.txt") == ["one", "two"]
    assert read_documents(tmp_path / "lines.jsonl") == ["four", "five"]


def test_no_document_is_in_two_parts_and_nothing_is_lost(tmp_path, tokenizer):
    texts = documents(40)
    (tmp_path / "all.txt").write_text("\n\n".join(texts))
    data = load_data(f"text:{tmp_path / 'all.txt'}", tokenizer=tokenizer, sequence_length=10)
    assert data.objective.name == "next_token"
    rows = {part: ids(split) for part, split in (("train", data.train), ("val", data.val), ("test", data.test))}
    assert {part: len(r) for part, r in rows.items()} == {"train": 60, "val": 8, "test": 12}  # of 20 tokens each
    encoded = {tuple(int(word[1:]) for word in text.split()) for text in texts}
    seen = {part: {tuple(r.reshape(-1, 20)[i].tolist()) for i in range(len(r) // 2)} for part, r in rows.items()}
    assert seen["train"] | seen["val"] | seen["test"] == encoded
    limited = load_data(f"text:{tmp_path / 'all.txt'}", tokenizer=tokenizer, sequence_length=10, limit=5)
    assert len(limited.train) == 5 and len(limited.test) == 12


def test_a_data_set_of_text_on_the_hub(monkeypatch, tokenizer):
    class Table:
        def __init__(self, count):
            self.texts = documents(count)
            self.features = {"text": types.SimpleNamespace(dtype="string"), "id": types.SimpleNamespace(dtype="int64")}

        def __getitem__(self, key):
            return self.texts

    library = types.ModuleType("datasets")
    library.load_dataset = lambda name, **_: {"train": Table(30), "test": Table(6)}
    library.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "datasets", library)
    data = load_data("hf:some/text", tokenizer=tokenizer, sequence_length=20)
    assert (len(data.train), len(data.val), len(data.test)) == (27, 3, 6)
    assert load_data("hf:some/text", model_tokenizer=tokenizer, sequence_length=9).objective.name == "next_token"


def test_a_recipe_on_text_prunes_a_model_by_its_own_tokenizer(tmp_path, tokenizer):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=31, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tokenizer)
    (tmp_path / "all.txt").write_text("\n\n".join(documents(60)))
    recipe = {
        "model": {"spec": f"hf:{tokenizer}"},
        "data": {"spec": f"text:{tmp_path / 'all.txt'}", "sequence_length": 16},
        "budget": {"params": "80%"},
    }
    record = run(from_dict(RunConfig, recipe), tmp_path / "run", progress=False)
    assert record["proof"]["error"] < 1e-9 and record["objective"]["kind"] == "next_token"
    assert record["quality"]["cut"]["perplexity"] > 1


def test_what_does_not_fit_is_told(tmp_path, tokenizer):
    file = tmp_path / "three.txt"
    file.write_text("one line\nanother\nthe third")
    with pytest.raises(DataError, match=r"1 documents.*give more text"):
        load_data(f"text:{file}", tokenizer=tokenizer)
    file.write_text("one line\n\nanother\n\nthe third")
    with pytest.raises(DataError, match=r"fewer than one sequence of 128.*sequence_length"):
        load_data(f"text:{file}", tokenizer=tokenizer)
    with pytest.raises(ConfigError, match="tokenizer='DIR'"):
        load_data(f"text:{file}")
    with pytest.raises(ConfigError, match="image_size is of no use"):
        load_data(f"text:{file}", tokenizer=tokenizer, image_size=32)
    with pytest.raises(ConfigError, match="tokenizer is of no use"):
        load_data("builtin:digits", tokenizer=tokenizer)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_data(f"text:{file}", tokenizer=str(file))
    with pytest.raises(DataError, match="not there"):
        load_data(f"text:{tmp_path / 'none'}", tokenizer=tokenizer)
    (tmp_path / "bad.jsonl").write_text('{"txt": 1}\n')
    with pytest.raises(DataError, match="line 1"):
        load_data(f"text:{tmp_path / 'bad.jsonl'}", tokenizer=tokenizer)
    (tmp_path / "latin.txt").write_bytes("é".encode("latin1"))
    with pytest.raises(DataError, match="UTF-8"):
        load_data(f"text:{tmp_path / 'latin.txt'}", tokenizer=tokenizer)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no text"):
        load_data(f"text:{tmp_path / 'empty'}", tokenizer=tokenizer)


def test_a_missing_library_is_named(tmp_path, tokenizer, monkeypatch):
    (tmp_path / "all.txt").write_text("\n\n".join(documents(40)))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"tokenizers is not installed.*metaprune\[hf\]"):
        load_data(f"text:{tmp_path / 'all.txt'}", tokenizer=tokenizer)
