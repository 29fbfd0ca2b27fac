"""What an archive says of itself, read without building anything of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from metaprune.core.errors import DamagedFileError
from metaprune.core.files import SEAL, part_of, tensors_digest
from metaprune.core.read import read_tensors, require_seal, understood
from metaprune.export.archive import MODEL, NETWORK, REMEDY, read_archive
from metaprune.export.operators import operator_of


def archive_facts(folder: str | Path) -> dict[str, str]:
    """Form, spec, tensors, bytes, operators and digests of an archive, as short texts by name.

    Raises:
        DataError: no archive, or one that cannot be read.
    """
    folder = Path(folder)
    path = part_of(folder, NETWORK)
    described = read_archive(folder)
    tensors = read_tensors(part_of(folder, MODEL), remedy=REMEDY)
    size = sum(p.stat().st_size for p in (path, part_of(folder, MODEL)))
    values = sum(t.numel() for t in tensors.values())
    with understood(str(path), REMEDY):
        calls = _calls(described)
    return {
        "form": f"{described['form']} ({described['why']})",
        "made from": _origin(described),
        "tensors": f"{len(tensors)}, {values:,} values",
        "bytes": f"{size:,}",
        "operators": "no graph" if described["graph"] is None else _counted(calls),
        "digests": _digests(path, described, tensors_digest(tensors)),
    }


def _origin(described: dict[str, Any]) -> str:
    known = described.get("transformers")
    if isinstance(known, dict):
        return f"transformers {known.get('class')}, from the config in the archive"
    return f"{described['spec']} {described['options'] or ''}".strip() if described["spec"] else "a class of its own"


def _calls(described: dict[str, Any]) -> Counter[str]:
    nodes = [] if described["graph"] is None else described["graph"]["nodes"]
    return Counter(str(node["target"]) for node in nodes if node["op"] == "call_function")


def _counted(calls: Counter[str]) -> str:
    foreign = [name for name in calls if operator_of(name) is None]
    odd = f"; NOT of metaprune: {', '.join(foreign[:8])}" if foreign else ""
    return f"{sum(calls.values())} calls of {len(calls)}{odd}"


def _digests(path: Path, described: dict[str, Any], tensors: str) -> str:
    if SEAL not in described or "tensors_digest" not in described:
        return "none (an early version wrote it)"
    try:
        require_seal(path, described, REMEDY)
    except DamagedFileError:
        return f"{NETWORK} differs from its digest: damaged or changed"
    if described["tensors_digest"] != tensors:
        return f"{MODEL} differs from its digest in {NETWORK}: damaged, or of another save"
    return "agree"
