"""The Hugging Face Hub: a model card made from a record, and the upload of a pruned network."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metaprune._version import __version__
from metaprune.core.errors import DataError, NotAvailableError, first_line
from metaprune.core.files import write_json
from metaprune.core.imports import import_optional
from metaprune.export.archive import save
from metaprune.export.fetch import HUB_NAME
from metaprune.export.hf_folder import save_pretrained
from metaprune.report.rows import budget_rows, headline, summary_rows
from metaprune.surgery.cut import Pruned

CARD = "README.md"


def model_card(record: Mapping[str, Any], repo: str, base_model: str | None = None) -> str:
    """Write a model card: what was asked for, the proof, costs and quality before and after, all from the record.

    Args:
        base_model: name on the Hub of the model that was pruned.
    """
    hub = import_optional("huggingface_hub", "hf")
    data = hub.ModelCardData(library_name="metaprune", base_model=base_model, tags=["pruned"])
    rows = [(r.label, r.before, r.after, r.change) for r in summary_rows(record)]
    bounds = [(r.metric, r.bound, r.reached, {True: "yes", False: "no", None: ""}[r.met]) for r in budget_rows(record)]
    origin = f"Pruned from `{base_model}`" if base_model else "Pruned"
    parts = [
        f"---\n{data.to_yaml()}\n---\n\n# {repo.rpartition('/')[2]}",
        f"{origin} by metaprune {__version__}, method `{record['method']}`. {_line(headline(dict(record)))}",
        f"## Proof\n\n{_proof(record['proof'])}",
        f"## Budget\n\n{_table(('metric', 'at most', 'reached', 'met'), bounds)}",
        f"## Before and after\n\n{_table(('', 'before', 'after', 'change'), rows)}",
        *([f"Quality is of the {record['quality']['split']} split."] if record.get("quality") else []),
        f'## Load\n\n```python\nimport metaprune as mp\n\nmodel = mp.load("{repo}")\n```',
    ]
    if record.get("warnings"):
        parts.insert(-1, "## Warnings\n\n" + "\n".join(f"- {_line(str(w))}" for w in record["warnings"]))
    return "\n\n".join(parts) + "\n"


def _proof(proof: Mapping[str, Any]) -> str:
    if proof["error"] is None:
        return _line(f"Not proved. {proof['unproved']}")
    return (
        f"Equal to its masked original in float64, to a relative error of {proof['error']:.1e}. Form: {proof['form']}."
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_line(str(cell)) for cell in line)} |" for line in lines)


def _line(text: str) -> str:
    """On one line, and without what Markdown would read as a table."""
    return " ".join(text.replace("|", "/").split())


def push(
    pruned: Pruned,
    repo: str,
    *,
    record: Mapping[str, Any],
    base_model: str | None = None,
    private: bool = False,
    token: str | None = None,
    spec: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> str:
    """Upload a network, its record and its card; `metaprune.load(repo)` reads it. Returns the address.

    A folder of transformers where the config can say the widths, layer by layer if need be; else an archive.

    Raises:
        DataError: a name that is not OWNER/NAME, or the Hub refuses; says why.
    """
    hub = import_optional("huggingface_hub", "hf")
    if not HUB_NAME.fullmatch(repo):
        raise DataError(f"{repo!r} is no name on the Hub: write OWNER/NAME")
    base_model = base_model or _origin(pruned.network.model)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "model"
        try:
            save_pretrained(pruned, folder)
        except NotAvailableError:
            save(pruned, folder, spec=spec, options=dict(options or {}))
        write_json(folder / "record.json", dict(record))
        (folder / CARD).write_text(model_card(record, repo, base_model), encoding="utf-8")
        api = hub.HfApi(token=token)
        try:
            api.create_repo(repo, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message=f"metaprune {__version__}"))
        except (hub.errors.HfHubHTTPError, OSError) as error:
            raise DataError(f"the Hub did not take {repo} ({first_line(error)}): log in by `hf auth login`") from error


def _origin(model: Any) -> str | None:
    """Name on the Hub that a transformers model was loaded from, if it says one."""
    name = None
    with contextlib.suppress(AttributeError):
        name = model.config._name_or_path
    return name if isinstance(name, str) and re.fullmatch(HUB_NAME, name) and not Path(name).exists() else None
