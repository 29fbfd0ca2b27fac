"""Methods: peers behind one protocol, by name."""

from metaprune.protocol.registry import create_method, method_class, method_names, register

__all__ = ["create_method", "method_class", "method_names", "register"]
