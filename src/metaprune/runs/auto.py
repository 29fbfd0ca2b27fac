"""`method="auto"`: what a prune does where nobody named a method, chosen by benchmarks/accuracy."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

from metaprune.calibration.config import Compensate
from metaprune.core.errors import ConfigError

log = logging.getLogger("metaprune")

AUTO = "auto"
WITH_DATA: tuple[str, dict[str, Any], Compensate] = ("activation", {"allocate": "sensitivity"}, "least-squares")
WITHOUT_DATA = "magnitude"


def resolved_method(
    method: Any, options: Mapping[str, Any], compensate: Compensate | Literal["auto"], has_data: bool
) -> tuple[Any, dict[str, Any], Compensate]:
    """Replace `auto` by what it stands for: method, options, and compensation. Other names and objects stay.

    A method of the user's own choice is not compensated unless that is asked for.

    Raises:
        ConfigError: options without a method that they are of.
    """
    if not (isinstance(method, str) and method == AUTO):  # an array compares element by element
        return method, dict(options), "none" if compensate == AUTO else compensate
    if options:
        raise ConfigError(f"options {', '.join(options)} are of a method: name it, as method='magnitude'")
    if has_data:
        name, settings, chosen = WITH_DATA
        return name, dict(settings), chosen if compensate == AUTO else compensate
    log.info(
        "no data, so channels are ranked by their weights alone: data=(train, val) of unlabelled samples keeps more "
        "(method 'auto' then measures widths and solves what is left anew)"
    )
    return WITHOUT_DATA, {}, "none" if compensate == AUTO else compensate
