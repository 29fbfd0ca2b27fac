"""The tests that every method of metaprune passes."""

from metaprune.testing.method_suite import MethodSuite


class TestReaderNorm(MethodSuite):
    method, options = "reader_norm", {"power": 1}
    kinds = ("cnn",)
