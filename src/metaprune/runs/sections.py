"""What the methods tell of a run, for its report and the terminal."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from metaprune.core.errors import ConfigError, one_line_error
from metaprune.protocol.registry import METHODS, method_names, method_spec

if TYPE_CHECKING:
    from metaprune.report.section import Section

log = logging.getLogger("metaprune")


def sections_of(record: Mapping[str, Any]) -> list[Section]:
    """Collect the section of every method that has something to tell; one that fails is left out, with a warning."""
    sections = []
    for name in method_names():
        try:
            section = method_spec(name).section(record)
        except Exception as error:  # an installed package's code may raise anything; the run's result is whole
            if METHODS.is_builtin(name):
                raise
            reason = error if isinstance(error, ConfigError) else one_line_error(error)
            log.warning("warning: the report lacks the section of method %r: %s", name, reason)
            continue
        if section is not None:
            sections.append(section)
    return sections
