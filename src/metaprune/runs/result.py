"""What `prune` returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from torch import nn

from metaprune.core.arguments import check_arguments
from metaprune.core.errors import WriteError, first_line
from metaprune.data.load import as_data
from metaprune.export.archive import save
from metaprune.hub import push
from metaprune.report.html import write_report
from metaprune.report.rows import headline, summary_rows
from metaprune.runs.inputs import require_fit
from metaprune.runs.record import weights_digest
from metaprune.runs.sections import sections_of
from metaprune.surgery.cut import Pruned
from metaprune.train.evaluate import evaluate
from metaprune.values import Plan

_ROWS = 5  # of a summary in a terminal
_STALE = "the network was trained on after these figures were taken: result.measure(data) gives those of now"


@dataclass(frozen=True, repr=False)
class Result:
    """What `prune` returns.

    Attributes:
        model: the smaller network.
        plan: what was kept.
        record: every figure, as plain data (see `metaprune.runs.schema.Record`).
        pruned: the proof.
    """

    model: nn.Module
    plan: Plan
    record: dict[str, Any]
    pruned: Pruned

    def save(self, folder: str | Path, *, spec: str | None = None, options: Mapping[str, Any] | None = None) -> Path:
        """Write safetensors and JSON; `metaprune.load(folder)` reads them back. `spec`: how the original is made.

        Weights are written as they are now. If they are not those of the record's figures, its warnings say so.
        """
        check_arguments(Result.save, locals())
        return save(self.pruned, folder, spec=spec, options=dict(options or {}), record=self._dated())

    def push_to_hub(
        self,
        repo: str,
        *,
        base_model: str | None = None,
        private: bool = False,
        token: str | None = None,
        spec: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """Upload the network with a card made from the record; `metaprune.load(repo)` reads it. Returns the address.

        Args:
            repo: OWNER/NAME on the Hugging Face Hub; made if it is not there.
            base_model: name of the original on the Hub; by default what a transformers model was loaded from.
            private: whether a new repository is private.
            token: of the Hub; by default that of `hf auth login`.
            spec: how the original is made, as timm:resnet18; see `save`.
            options: arguments of that spec.

        Raises:
            DataError: the Hub refuses; says why.
        """
        check_arguments(Result.push_to_hub, locals())
        return push(
            self.pruned, repo, record=self._dated(), base_model=base_model, private=private, token=token, spec=spec,
            options=options,
        )  # fmt: skip

    def _dated(self) -> dict[str, Any]:
        """Return the record, with a warning where its figures are not of the weights as they are now."""
        measured = (self.record.get("quality") or {}).get("tensors")
        if measured is None or measured == weights_digest(self.model):
            return self.record
        return {**self.record, "warnings": [*self.record["warnings"], _STALE]}

    def __repr__(self) -> str:
        """Say in a few lines what was cut and what is left."""
        rows = [f"  {r.label}: {r.before} -> {r.after}" for r in summary_rows(self.record)]
        return "\n".join(["Result(", f"  {headline(self.record)}", *rows[:_ROWS], ")"])

    def _repr_html_(self) -> str:
        """Say it as a table, for notebooks."""
        rows = [(r.label, r.before, r.after, r.change) for r in summary_rows(self.record)]
        lines = (f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        head = "<tr><th></th><th>before</th><th>after</th><th>change</th></tr>"
        return f"<p>{escape(headline(self.record))}</p><table>{head}{''.join(lines)}</table>"

    def report(self, path: str | Path) -> Path:
        """Write the report of a run as one HTML page; returns its path.

        Raises:
            WriteError: the file cannot be written.
        """
        check_arguments(Result.report, locals())
        try:
            return write_report(self._dated(), path, sections_of(self.record), self_contained=True)
        except OSError as error:
            raise WriteError(f"no report at {str(path)!r}: {first_line(error)}. Name a file, as report.html") from error

    def measure(self, data: Any, *, objective: Any = None, batch_size: int = 256) -> dict[str, float]:
        """Measure `model` as it is now, after training of your own too; the record stays as it is.

        Args:
            data: as for `prune`; the test split, or validation where there is none.
            objective: as for `prune`, where the data do not say.
            batch_size: samples per forward pass.

        Returns:
            The objective's metrics, its loss, and how many samples and items they are of.

        Raises:
            DataError: no objective, or samples that the model does not run on.
        """
        check_arguments(Result.measure, locals())
        given = as_data(data, objective=objective).bound_to(self.pruned.network.model)
        require_fit(self.model, given)
        split = given.val if given.test is None else given.test
        found = evaluate(self.model, split, objective=given.require_objective(), batch_size=batch_size)
        return found.to_dict()
