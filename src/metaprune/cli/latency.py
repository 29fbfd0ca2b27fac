"""`metaprune latency MODEL`: a table of measured milliseconds, which makes latency a budget."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from metaprune.core.errors import ConfigError
from metaprune.runs.verb_tools import console, traced

if TYPE_CHECKING:
    from metaprune.network import Network


@dataclass(frozen=True)
class Latency:
    """Measure how long a model takes on this machine at any widths, so that latency_ms can be a budget.

    Stopped, it goes on with the same command from what was measured, which lies beside the table until that is there.
    """

    model: tyro.conf.Positional[str]
    """zoo:NAME, builtin:NAME, timm:NAME_OR_DIR, torchvision:NAME, hf:NAME_OR_DIR or python:module:function."""
    option: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """Argument of the model, as num_classes=10; may be repeated."""
    weights: str | None = None
    """Weight file."""
    input_shape: tuple[int, ...] | None = None
    """Shape of one sample, as 3 224 224."""
    device: str = "cpu"
    """cpu, cuda, cuda:1 or auto."""
    batch: int = 1
    """Samples per forward pass that the milliseconds are of."""
    runtime: Literal["eager", "compile", "onnxruntime"] = "eager"
    """What runs the network; conv, norm and activation are measured as the runtime fuses them."""
    points: int = 5
    """Grid points per width; compile and onnxruntime build every segment at each of them."""
    samples: int | None = None
    """Structures whose segments are measured; by default enough for the grid."""
    repeats: int | None = None
    """A time is the median of this many runs; by default 7, and more of a network that takes less than 20 ms."""
    clock: Literal["wall", "cpu"] = "wall"
    """cpu: processor time of one thread, which other work on the machine disturbs less (OMP_NUM_THREADS=1)."""
    structures: int = 30
    """Random structures, measured end to end, that tell the table's error."""
    seed: int = 0
    out: Path = Path("latency.json")
    """Where the table goes."""

    def run(self) -> int:
        from metaprune.core.rng import Rng
        from metaprune.latency import build_table

        if self.batch < 1:
            raise ConfigError(f"--batch {self.batch} is no number of samples: give 1 or more")
        if self.out.is_dir() or self.out.suffix != ".json":
            raise ConfigError(f"--out {self.out} is no JSON file: give a name such as latency.json")
        inputs, network = traced(self.model, self.option, self.weights, self.input_shape, self.device, self.seed)
        self._require_free(network)
        out, so_far = console(), self.out.with_suffix(".part.json")
        if so_far.exists():
            out.print(f"going on from {so_far}", soft_wrap=True)
        table = build_table(
            network,
            *inputs.batch_of(self.batch),
            runtime=self.runtime,
            points=self.points,
            samples=self.samples,
            repeats=self.repeats,
            structures=self.structures,
            clock=self.clock,
            rng=Rng(self.seed).child("latency"),
            progress=lambda text: out.print(text, soft_wrap=True),
            keep=so_far,
        )
        table.save(self.out)
        so_far.unlink(missing_ok=True)
        error, between = table.info["error"], table.info["interpolation"]
        for line in (
            f"full network, by the table: {table.info['full_ms']:.3f} ms  "
            f"(batch {self.batch}, {self.runtime}, {self.device})",
            f"error on {error['structures']} random structures, end to end: median "
            f"{100 * error['median_relative_error']:.1f}%, 90th percentile {100 * error['p90_relative_error']:.1f}%, "
            f"rank correlation {error['spearman']:.3f}",
            f"interpolation: segments at unmeasured widths are off by "
            f"{100 * between['time_weighted_relative_error_of_segments']:.1f}% of their time",
            *(() if table.warning is None else (f"warning: {table.warning}",)),
            f"{self.out}",
        ):
            out.print(line, soft_wrap=True)
        return 0

    def _require_free(self, network: Network) -> None:
        """A table is only replaced by one of the same network, batch size and runtime."""
        from metaprune.latency import LatencyTable

        if not self.out.exists():
            return
        try:
            there = LatencyTable.load(self.out)
            there.check(network)
            same = (there.info["batch"], there.info["runtime"]) == (self.batch, self.runtime)
        except ConfigError:
            same = False
        if not same:
            raise ConfigError(f"{self.out} is there and holds something else: give --out another name, or delete it")
