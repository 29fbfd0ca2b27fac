"""What a run leaves in record.json: dataclasses with a schema number. No torch here: the command line reads records."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metaprune.core.errors import ConfigError
from metaprune.core.read import damaged, read_json, understood
from metaprune.train.history import current_epoch

SCHEMA = 1
"""Rises when a key changes its name or meaning. Records without a number are of schema 0, before objectives."""

Figures = Mapping[str, float]
"""Metrics by name; `samples` and `items` beside them."""


@dataclass(frozen=True, kw_only=True)
class SpaceRecord:
    """Channel groups before and after, what is locked and why, and which groups every pattern of the user's names."""

    digest: str
    groups: list[dict[str, Any]]
    locked: list[dict[str, Any]]
    uncovered: list[dict[str, Any]]
    notes: list[str]
    over_merged: int
    patterns: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CostRecord:
    """Cost of one sample, metric -> value, of the full network and of the pruned one."""

    before: Figures
    after: Figures


@dataclass(frozen=True, kw_only=True)
class ProofRecord:
    """How the cut was proved equal to its masked original; error is relative, None where nothing was compared."""

    form: str
    why: str
    error: float | None
    unproved: str = ""
    config: str | None


@dataclass(frozen=True, kw_only=True)
class QualityRecord:
    """Figures on one split of the original, right after the cut, and after recovery (None without one).

    untrained_head: the original has a new head that nothing trained, so `dense` says nothing of the weights.
    untrained: the original has random weights, so no figure says anything of the method.
    """

    split: str
    dense: Figures
    cut: Figures
    recovered: Figures | None = None
    untrained_head: bool = False
    untrained: bool = False


@dataclass(frozen=True, kw_only=True)
class EffortRecord:
    """What recovery took: samples of all epochs, and MACs (forward and backward are three forward passes).

    None where a loop of the user's own recovered.
    """

    kind: str
    samples: int | None = None
    macs: float | None = None


@dataclass(frozen=True, kw_only=True)
class Record:
    """Everything that `prune` and `run` report; JSON-able by `to_dict`.

    The first part says what was asked for, as resolved: `replay` repeats a run from it. The fields from `command` on
    are those of a run in a folder, None after `prune`.
    """

    schema: int = SCHEMA
    metaprune: str
    created: str
    environment: dict[str, Any]
    seed: int
    budget: dict[str, Any]
    method: str
    method_options: dict[str, Any]
    constraints: dict[str, Any]
    objective: dict[str, Any] | None
    recover: dict[str, Any]
    compensate: str = "none"
    rounds: int = 1
    form: str
    free_outputs: bool | list[str]
    batch_dim: int = 0
    batch_size: int
    bounds: dict[str, float]
    space: SpaceRecord
    cost: CostRecord
    proof: ProofRecord
    masks: dict[str, Any] | None
    quality: QualityRecord | None
    history: dict[str, Any]
    recovery: EffortRecord | None
    compensation: dict[str, Any] | None = None
    """Held-out errors by layer, before and after, what was left alone and why, and the cost; None without one."""
    method_details: dict[str, Any]
    latency_table: dict[str, Any] | None
    module_rules: dict[str, Any] | None
    seconds: dict[str, float]
    splits: dict[str, Any] | None = None
    """Samples by split (None where only a walk could tell), and `carved`: the splits cut out of the training part."""
    warnings: list[str] = field(default_factory=list)
    """What was warned of on the way, each once, without paths."""
    command: str | None = None
    config: dict[str, Any] | None = None
    model: str | None = None
    data: str | None = None
    latency_ms: dict[str, Any] | None = None
    file_bytes: dict[str, int] | None = field(default=None)
    files: dict[str, dict[str, Any]] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data; what does not apply is None."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def read_record(path: str | Path) -> dict[str, Any]:
    """Read a record.json of this schema or an older one, as `upgraded` returns it.

    Raises:
        ConfigError: no such file, no JSON, or a newer schema.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigError(f"there is no {path}: give a record.json that a run wrote")
    record = read_json(path, kind=object, remedy="run its command again")
    if not isinstance(record, dict):
        damaged(path, "it holds no record", "give a record.json that a run wrote")
    with understood(str(path), "run its command again"):
        return upgraded(record, str(path))


_LATER: dict[str, Any] = {"splits": None, "warnings": [], "compensate": "none", "compensation": None, "rounds": 1}
"""Keys that joined the schema later, and what a record without them means."""


def upgraded(record: Mapping[str, Any], name: str = "the record") -> dict[str, Any]:
    """Upgrade a record of an older schema to the keys of this one; what was not recorded then is None.

    Raises:
        ConfigError: a newer schema than this version knows.
    """
    schema = record.get("schema", 0)
    if not isinstance(schema, int) or schema > SCHEMA:
        raise ConfigError(
            f"{name} has schema {schema!r}, this version of metaprune reads up to {SCHEMA}: install a newer one"
        )
    if schema == SCHEMA:
        return {**_LATER, **record}
    known = {f.name: None for f in dataclasses.fields(Record)} | _LATER
    history = {
        phase: None if rows is None else {**rows, "rows": [current_epoch(row) for row in rows.get("rows", ())]}
        for phase, rows in (record.get("history") or {}).items()
    }
    return {**known, **record, "schema": SCHEMA, "history": history}
