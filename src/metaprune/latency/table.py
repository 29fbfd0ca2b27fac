"""`LatencyTable`: milliseconds of any widths from measured segments, in microseconds, and its file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metaprune.core.arguments import check_arguments
from metaprune.core.errors import ConfigError, DamagedFileError, PlanError
from metaprune.core.files import write_json
from metaprune.core.read import read_json
from metaprune.latency.grid import Grid
from metaprune.latency.segments import AxisTerms, Segment, Sizes, axis_values, segments_of
from metaprune.network import Network

FORMAT, VERSION = "metaprune latency table", 1
_POOR_ERROR, _POOR_RANK = 0.15, 0.9


class LatencyTable:
    """Measured milliseconds of the segments of one traced network on one device.

    A forward pass takes `offset_ms + scale * (sum over segments)`; the two numbers come from whole networks measured
    end to end. `info` says how it was measured and how far predictions are from measurements.
    """

    def __init__(
        self,
        digest: str,
        sizes: Sizes,
        segments: Sequence[Segment],
        grids: Mapping[str, Grid],
        *,
        scale: float = 1.0,
        offset_ms: float = 0.0,
        info: dict[str, Any] | None = None,
    ):
        check_arguments(LatencyTable.__init__, locals())
        self.digest, self.sizes, self.segments, self.grids = digest, sizes, list(segments), dict(grids)
        self.scale, self.offset_ms = scale, offset_ms
        self.info: dict[str, Any] = {} if info is None else info
        self._tables = self._plan()

    def predict_ms(self, widths: np.ndarray) -> np.ndarray:
        """widths: int64 [n, groups] -> milliseconds float64 [n] of one forward pass of the table's batch.

        No table has times at width 0: a branch that is dropped costs what one channel in each of its groups would.
        """
        sizes = self.sizes.of(self._widths(widths))
        total = np.zeros(sizes.shape[1])
        for grid, count, columns in self._tables:
            if not columns:
                total += count * grid.dense[0]
                continue
            read = [sizes[c] if isinstance(c, np.ndarray) else _stacked(c, sizes) for c in columns]
            total += grid.dense[grid.cell(read)].sum(axis=0)
        return self.offset_ms + self.scale * total

    def segments_ms(self, widths: np.ndarray) -> np.ndarray:
        """widths: int64 [n, groups] -> milliseconds of every segment alone, float64 [n, segments]."""
        sizes = self.sizes.of(self._widths(widths))
        milliseconds = np.zeros((sizes.shape[1], len(self.segments)))
        for s, segment in enumerate(self.segments):
            grid = self.grids[segment.key]
            milliseconds[:, s] = grid.dense[grid.cell([axis_values(axis, sizes) for axis in segment.axes])]
        return milliseconds

    def _widths(self, widths: Any) -> np.ndarray:
        """Raises PlanError for what is no int64 [n, groups]."""
        try:
            rows = np.asarray(widths, dtype=np.int64)
        except (TypeError, ValueError, OverflowError):
            rows = np.empty(0, dtype=np.int64)
        if rows.shape[1:] != (len(self.sizes.full),):
            raise PlanError(f"widths are whole numbers of shape [structures, {len(self.sizes.full)} groups]")
        return np.maximum(rows, 1)

    def _plan(self) -> list[tuple[Grid, int, list[np.ndarray | list[AxisTerms]]]]:
        """Of every table: its grid, how many segments use it, and per axis the sizes that its segments read."""
        members: dict[str, list[Segment]] = defaultdict(list)
        for segment in self.segments:
            members[segment.key].append(segment)
        if not members.keys() <= self.grids.keys():
            raise ValueError("a segment has no table")
        steps = []
        for key, grid in self.grids.items():
            columns: list[np.ndarray | list[AxisTerms]] = []
            for axes in zip(*(s.axes for s in members[key]), strict=True):
                plain = all(len(axis) == 1 and axis[0][0] == 1 and len(axis[0][1]) == 1 for axis in axes)
                columns.append(np.array([axis[0][1][0] for axis in axes]) if plain else list(axes))
            steps.append((grid, len(members[key]), columns))
        return steps

    def check(self, network: Network) -> None:
        """Raises ConfigError if the table was made for another network, or for other sizes of input."""
        check_arguments(LatencyTable.check, locals())
        advice = "Make one for this network with `metaprune latency MODEL`"
        if network.space.digest() != self.digest:
            raise ConfigError(
                f"the latency table was made for another network (its channel groups have digest {self.digest}, this "
                f"network's {network.space.digest()}). {advice}"
            )
        segments, _ = segments_of(network, self.info["batch"])
        mine, theirs = ([(s.key, s.axes) for s in each] for each in (segments, self.segments))
        if mine != theirs:
            other = next((s for s, a, b in zip(segments, mine, theirs, strict=False) if a != b), segments[-1])
            raise ConfigError(
                f"the latency table was made for other operators or sizes of input ({self.info['inputs']}): "
                f"{', '.join(other.nodes)} is not what was measured. {advice}, with this network's --input-shape"
            )

    @property
    def warning(self) -> str | None:
        """What is to be said of a table whose predictions are far off; None of a good one."""
        error = self.info.get("error", {})
        median, rank = error.get("median_relative_error", 0.0), error.get("spearman", 1.0)
        if median <= _POOR_ERROR and rank >= _POOR_RANK:
            return None
        error_text = f"off by {median:.0%} in the median, rank correlation {rank:.2f}"
        return f"the latency table is {error_text}: measure it anew, on an idle machine"

    # ------------------------------------------------------------------------------------------ file

    def save(self, path: str | Path) -> None:
        """Write JSON; the file is whole or not there."""
        check_arguments(LatencyTable.save, locals())
        write_json(
            Path(path),
            {
                "format": FORMAT,
                "version": VERSION,
                "info": self.info,
                "network": self.digest,
                "scale": self.scale,
                "offset_ms": self.offset_ms,
                "full_widths": self.sizes.full.tolist(),
                "sizes": self.sizes.polynomials,
                "segments": [{"key": s.key, "nodes": s.nodes, "axes": s.axes} for s in self.segments],
                "tables": {key: grid.to_dict() for key, grid in self.grids.items()},
            },
        )

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Read what `save` wrote.

        Raises:
            ConfigError: no such file, or it is no latency table.
        """
        check_arguments(LatencyTable.load, {"path": path})
        advice = "Make one with `metaprune latency MODEL --out FILE`"
        if not Path(path).exists():
            raise ConfigError(f"there is no latency table {path}. {advice}")
        try:
            data = read_json(Path(path), kind=object, remedy=advice)
        except DamagedFileError as error:
            raise DamagedFileError(f"{path} is no latency table: {error}") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT or data.get("version") != VERSION:
            raise ConfigError(f"{path} is no latency table of version {VERSION}. {advice}")
        try:
            return cls._from_dict(data)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, MemoryError) as error:
            raise ConfigError(
                f"the latency table {path} is damaged ({type(error).__name__}: {error}). {advice}"
            ) from None

    @classmethod
    def _from_dict(cls, data: dict[str, Any]) -> LatencyTable:
        full = np.array(data["full_widths"], dtype=np.int64)
        sizes = Sizes(full, [tuple((tuple(groups), rows) for groups, rows in p) for p in data["sizes"]])
        segments = [
            Segment(s["key"], tuple(s["nodes"]), tuple(tuple((n, tuple(ids)) for n, ids in a) for a in s["axes"]))
            for s in data["segments"]
        ]
        grids = {key: Grid.from_dict(grid) for key, grid in data["tables"].items()}
        table = cls(data["network"], sizes, segments, grids, scale=data["scale"], offset_ms=data["offset_ms"])
        table.info = data["info"]
        if table.predict_ms(full[None]).shape != (1,):
            raise ValueError("it predicts nothing")
        return table


def _stacked(axes: list[AxisTerms], sizes: np.ndarray) -> np.ndarray:
    return np.stack([axis_values(axis, sizes) for axis in axes])
