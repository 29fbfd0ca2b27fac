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
    """Of the space: plans and artifacts of another one are refused."""
    groups: list[dict[str, Any]]
    """Of every channel group its name, its width before and after, and the dimensions that it is made of."""
    locked: list[dict[str, Any]]
    """What cannot shrink, with the reason."""
    uncovered: list[dict[str, Any]]
    """Operators without a rule."""
    notes: list[str]
    """How the network was captured, where that is worth telling."""
    over_merged: int
    """Rows that were tied more than needed."""
    patterns: dict[str, list[str]] = field(default_factory=dict)
    """Of every pattern of the constraints, the groups that it names."""


@dataclass(frozen=True, kw_only=True)
class CostRecord:
    """Cost of one sample, metric -> value, of the full network and of the pruned one."""

    before: Figures
    after: Figures


@dataclass(frozen=True, kw_only=True)
class ProofRecord:
    """How the cut was proved equal to its masked original; error is relative, None where nothing was compared."""

    form: str
    """module or graph."""
    why: str
    """Why this form."""
    error: float | None
    unproved: str = ""
    """Why nothing was compared; empty where the cut is proved."""
    config: str | None
    """Why the model's config cannot say the widths; None where it can, or where there is none."""


@dataclass(frozen=True, kw_only=True)
class QualityRecord:
    """Figures on one split of the original, right after the cut, and after recovery (None without one).

    untrained_head: the original has a new head that nothing trained, so `dense` says nothing of the weights.
    untrained: the original has random weights, so no figure says anything of the method.
    tensors: digest of the weights that the last figures are of; others were trained since.
    """

    split: str
    """test or val."""
    dense: Figures
    cut: Figures
    recovered: Figures | None = None
    untrained_head: bool = False
    untrained: bool = False
    tensors: str | None = None


@dataclass(frozen=True, kw_only=True)
class EffortRecord:
    """What recovery took: samples of all epochs, and MACs (forward and backward are three forward passes).

    None where a loop of the user's own recovered.
    """

    kind: str
    """The recovery."""
    samples: int | None = None
    """Training samples of all epochs."""
    macs: float | None = None
    """MACs of all of them."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """Everything that `prune` and `run` report; JSON-able by `to_dict`.

    The first part says what was asked for, as resolved: `replay` repeats a run from it. The fields from `command` on
    are those of a run in a folder, None after `prune`.
    """

    schema: int = SCHEMA
    """Version of these fields."""
    metaprune: str
    """Version of the package."""
    created: str
    """Date and time, UTC."""
    environment: dict[str, Any]
    """Versions, machine and device."""
    seed: int
    """Of everything random."""
    budget: dict[str, Any]
    """As asked for."""
    method: str
    """Its name."""
    method_options: dict[str, Any]
    """All of them, with defaults."""
    constraints: dict[str, Any]
    """As asked for."""
    objective: dict[str, Any] | None
    """Its kind and options."""
    recover: dict[str, Any]
    """Its kind and options."""
    compensate: str = "none"
    rounds: int = 1
    form: str
    free_outputs: bool | list[str]
    """Outputs that may change their width."""
    batch_dim: int = 0
    batch_size: int
    bounds: dict[str, float]
    """The budget in absolute numbers."""
    space: SpaceRecord
    cost: CostRecord
    proof: ProofRecord
    masks: dict[str, Any] | None
    """Of single weights: how many are left, their share, the pattern, and what it left out."""
    quality: QualityRecord | None
    history: dict[str, Any]
    """Figures of every epoch, by phase."""
    recovery: EffortRecord | None
    compensation: dict[str, Any] | None = None
    """Held-out errors by layer, before and after, what was left alone and why, and the cost; None without one."""
    method_details: dict[str, Any]
    """What the method has to tell; differs from method to method."""
    latency_table: dict[str, Any] | None
    """Which table predicted the milliseconds, and its error."""
    layers: list[dict[str, Any]] | None = None
    """Of every layer its `name`, `macs` and, where a table is attached, `ms`: [before, after] each."""
    module_rules: dict[str, Any] | None
    """What was tied or left whole so that the model's own class runs."""
    seconds: dict[str, float]
    """Wall time by phase."""
    splits: dict[str, Any] | None = None
    """Samples by split (None where only a walk could tell), and `carved`: the splits cut out of the training part."""
    warnings: list[str] = field(default_factory=list)
    """What was warned of on the way, each once, without paths."""
    command: str | None = None
    """As it was given."""
    config: dict[str, Any] | None = None
    """The recipe as resolved, which repeats the run."""
    model: str | None = None
    data: str | None = None
    latency_ms: dict[str, Any] | None = None
    """Measured before and after, in turns."""
    file_bytes: dict[str, int] | None = field(default=None)
    """Size of the weights on disk, before and after."""
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


_LATER: dict[str, Any] = {
    "splits": None,
    "layers": None,
    "warnings": [],
    "compensate": "none",
    "compensation": None,
    "rounds": 1,
}
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
