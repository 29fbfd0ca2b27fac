"""Methods: peers behind one protocol, by name."""

from metaprune.methods.registry import create_method, method_class, method_names, register

__all__ = ["create_method", "method_class", "method_names", "register"]
