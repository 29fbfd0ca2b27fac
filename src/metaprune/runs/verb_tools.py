"""What verbs share, those of methods too: values from text, and output. No torch: `--help` must not pay for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metaprune.core.errors import ConfigError
from metaprune.core.read import parse_toml


def toml_value(text: str) -> Any:
    """Parse a value: `3` -> 3, `0.1` -> 0.1, `true` -> True, `[1, 2]` -> [1, 2]; anything else is text."""
    try:
        return parse_toml(f"x = {text}")["x"]
    except (ValueError, KeyError):
        return text


def assignments(items: Sequence[str], flag: str) -> dict[str, Any]:
    """`["a.b=3"]` -> {"a.b": 3}."""
    values = {}
    for item in items:
        key, sep, value = item.partition("=")
        if not sep or not key:
            raise ConfigError(f"{flag} {item!r} is not understood; write key=value")
        values[key.strip()] = toml_value(value.strip())
    return values


def traced(
    model: str,
    option: Sequence[str],
    weights: str | None,
    input_shape: tuple[int, ...] | None,
    device: str = "cpu",
    seed: int = 0,
) -> tuple[Any, Any]:
    """(inputs, network) of a model that a verb was given by itself, without a recipe."""
    from metaprune.runs.config import ModelConfig, RunConfig
    from metaprune.runs.inputs import load_inputs
    from metaprune.tracing import trace
    from metaprune.values import Budget

    options = assignments(option, "--option")
    config = ModelConfig(spec=model, options=options, weights=weights, input_shape=input_shape)
    inputs = load_inputs(RunConfig(model=config, budget=Budget(macs="100%"), device=device, seed=seed))
    return inputs, trace(inputs.model, inputs.args, inputs.kwargs)


def console() -> Any:
    """Make the terminal to print to; text is the user's (folders, groups), so none of it is read as markup."""
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False)


def show_result(record: Mapping[str, Any], page: Path) -> None:
    """Print the summary of a run, and where its report is."""
    from metaprune.report import print_summary
    from metaprune.runs.sections import sections_of

    out = console()
    print_summary(record, out, sections_of(record))
    out.print(f"report: {page}", highlight=False, soft_wrap=True)
