"""Many data sets from one fit: what the verb `adapt` does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from metaprune.core.strict import from_dict
from metaprune.methods.stamp.method import Stamp
from metaprune.protocol.artifact import Artifact
from metaprune.runs.config import DataConfig, MethodConfig
from metaprune.runs.fitted import budget_in_path, fitted_config
from metaprune.runs.run import run
from metaprune.runs.trust import code_in
from metaprune.values import Budget

_OTHERS = ": `adapt` is for stamp"


def adapt(
    folder: str | Path,
    data: DataConfig,
    budget: Budget,
    overrides: dict[str, Any] | None = None,
    out: Path | None = None,
    *,
    progress: bool = True,
    trust: bool = False,
) -> tuple[dict[str, Any], Path]:
    """Adapt a fitted STAMP to another data set: freeze the mask, cut, train the small network, save, report.

    With adapt_steps = 0 nothing is trained unless the overrides name a recovery (see `closed_form`).

    Images are brought to the channels and, unless `data.image_size` says otherwise, the size of the reference data.

    Returns:
        the record, and the folder of the network (by default FOLDER/targets/NAME-BUDGET).

    Raises:
        ConfigError: no fitted run there, or of a method that does not adapt.
    """
    folder = Path(folder).resolve()
    tables = ("budget", "model", "train", "data")
    given = code_in({"data": data.spec})
    config = fitted_config(folder, overrides or {}, Stamp.name, tables, _OTHERS, given=given, trust=trust)
    options = {**config.method.options, "artifact": str(folder)}
    artifact = Artifact.load(folder, Stamp.name)
    with artifact.understood():
        shape = [int(size) for size in artifact.info["shape"]]
    if len(shape) == 3:
        data = dataclasses.replace(data, channels=data.channels or shape[0], image_size=data.image_size or shape[1])
    recover = config.recover
    if from_dict(Stamp, options, Stamp.name).reads_statistics and "recover.kind" not in (overrides or {}):
        recover = dataclasses.replace(recover, kind="none")
    if options.get("variant") == "structure" and recover.kind != "scratch":
        recover = dataclasses.replace(recover, kind="scratch")
    model = dataclasses.replace(config.model, weights=str(folder / "dense.safetensors"), new_head=True)
    model = dataclasses.replace(model, options={k: v for k, v in model.options.items() if k != "num_classes"})
    config = dataclasses.replace(
        config,
        data=data,
        budget=budget,
        train=None,
        recover=recover,
        model=model,
        method=MethodConfig(name=Stamp.name, options=options),
    )
    run_folder = out or folder / "targets" / f"{data.spec.replace(':', '-').replace('/', '_')}-{budget_in_path(budget)}"
    return run(config, run_folder, progress=progress), run_folder
