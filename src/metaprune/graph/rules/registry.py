"""Rules by operator name. A rule reads a `Call`, writes equations, and returns the labels of each output.

To add one: a function in the file of its operator family, decorated with the ATen names it covers:

    @rule("my_op")
    def my_op(call: Call) -> list[Label]:
        labels = call.labels(call["self"])
        call.lock(labels[-1], "why the last dimension cannot shrink")
        return labels
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metaprune.core.errors import ConfigError
from metaprune.graph.call import Call

RULES: dict[str, Callable[[Call], Any]] = {}


def rule(*names: str) -> Callable[[Callable[[Call], Any]], Callable[[Call], Any]]:
    """Register a function of a `Call` as the rule of operators, by their names without a namespace.

    The function says what belongs together, and returns the labels of the output (docs/rules.md).

    Raises:
        ConfigError: no names, or an operator that has a rule.
    """
    if not names or not all(isinstance(name, str) for name in names):
        raise ConfigError("rule takes the ATen names that a rule covers, as @rule('my_op')")

    def register(function: Callable[[Call], Any]) -> Callable[[Call], Any]:
        for name in names:
            if name in RULES:
                raise ConfigError(f"two rules for operator {name}: unregister one, or give other names")
            RULES[name] = function
        return function

    return register
