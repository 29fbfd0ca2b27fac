"""Measured milliseconds: a table of one network's segments on one device, and its use as a budget."""

from metaprune.latency.build import build_table
from metaprune.latency.table import LatencyTable

__all__ = ["LatencyTable", "build_table"]
