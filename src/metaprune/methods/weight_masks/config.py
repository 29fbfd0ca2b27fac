"""Options of the masks of single weights, without torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from metaprune.core.errors import ConfigError
from metaprune.protocol.options import MethodOptions
from metaprune.train.config import require_choice


@dataclass(frozen=True, kw_only=True)
class WeightMasksConfig(MethodOptions):
    """Masks of single weights, by magnitude: unstructured, or N of every M consecutive inputs."""

    name: ClassVar[str] = "weight_masks"

    pattern: str = "unstructured"
    """unstructured, or N:M as 2:4 (N kept of every M consecutive inputs of linear layers and convolutions)."""
    scope: Literal["global", "layer"] = "global"
    """Of unstructured masks: rank the weights of all layers together, or keep the same share of every layer."""

    def __post_init__(self) -> None:
        require_choice("weight_masks.scope", self.scope, ("global", "layer"))
        if parse_pattern(self.pattern) is not None and self.scope != "global":
            raise ConfigError(
                f"weight_masks.scope={self.scope!r} is of unstructured masks; {self.pattern} fixes every layer"
            )


def parse_pattern(text: str, also: str = "") -> tuple[int, int] | None:
    """(N, M) of `N:M`; None of `unstructured`. Raises ConfigError for anything else; `also`: what else it names."""
    if text == "unstructured":
        return None
    match = re.fullmatch(r"(\d+):(\d+)", text) if isinstance(text, str) else None
    if match is None or not 0 < int(match[1]) < int(match[2]):
        raise ConfigError(f"pattern {text!r} is not known: {also}unstructured, or N:M with 0 < N < M, as 2:4 or 1:4")
    return int(match[1]), int(match[2])
