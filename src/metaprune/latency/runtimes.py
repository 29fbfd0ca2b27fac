"""Timers: milliseconds of the segments, and of whole networks, at given widths.

`EagerTimer` times all segments in place while the traced graph runs: one structure gives a sample of every segment.
`StandaloneTimer` builds each segment as a module of its own, because `torch.compile` and ONNX Runtime fuse inside it.
Everything is a median of `repeats` after `warmup`. Structures take turns in groups, so that a busy machine slows all
alike; one structure is in every group, and times are scaled to one pace by it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from metaprune.core.errors import ConfigError, closest
from metaprune.core.files import digest_of
from metaprune.core.imports import import_optional
from metaprune.elastic.program import ProgramAtWidths, Step
from metaprune.latency.kept import Kept
from metaprune.latency.segments import Segment, Sizes, axis_values
from metaprune.latency.standalone import compiled, onnx_session, segment_modules
from metaprune.latency.timing import Call, Repeats, medians
from metaprune.network import Network
from metaprune.surgery.graph_form import graph_form
from metaprune.values import Plan

RUNTIMES = ("eager", "compile", "onnxruntime")
GROUP_BYTES = 10**9  # weights of the structures that take turns
GROUP_OPERATORS = 300  # their contractions: fewer than the kernels that oneDNN keeps


class Timer(Protocol):
    """Milliseconds at widths int64 [n, groups]."""

    few_widths: bool
    """Every distinct size of a segment costs a build: ask for few."""

    def segments(self, widths: np.ndarray) -> np.ndarray:
        """float64 [n, segments]."""
        ...

    def whole(self, widths: np.ndarray) -> np.ndarray:
        """float64 [n]."""
        ...


def make_timer(
    runtime: str,
    network: Network,
    segments: list[Segment],
    sizes: Sizes,
    args: tuple,
    kwargs: dict,
    repeats: Repeats,
    kept: Kept,
    say: Callable[[str], None] = lambda _: None,
) -> Timer:
    """Make the timer of a runtime; `say` is told how far it is, and how long the rest takes.

    What `kept` holds of an earlier start is not measured again.

    Raises:
        ConfigError: an unknown runtime or clock. MissingDependencyError: a runtime that is not installed.
    """
    if runtime not in RUNTIMES:
        raise ConfigError(f"no runtime {runtime!r}.{closest(str(runtime), RUNTIMES)} Known: {', '.join(RUNTIMES)}")
    if repeats.clock not in ("wall", "cpu"):
        raise ConfigError(f"no clock {repeats.clock!r}: wall or cpu")
    if repeats.clock == "cpu" and (network.device.type != "cpu" or torch.get_num_threads() > 1):
        raise ConfigError("clock cpu needs device cpu and one thread: set OMP_NUM_THREADS=1, or use clock wall")
    if runtime == "onnxruntime":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            import_optional(package, "onnx")
        if network.device.type != "cpu":
            raise ConfigError(
                "the onnxruntime table is measured on the CPU: use device cpu, or runtime eager or compile"
            )
    if runtime == "eager":
        return EagerTimer(network, segments, args, kwargs, repeats, kept, say)
    return StandaloneTimer(runtime, network, segments, sizes, args, kwargs, repeats, kept, say)


def plan_of(network: Network, widths: np.ndarray) -> Plan:
    """Plan to keep the first channels: which ones stay does not matter for time."""
    return Plan.of(network.space, [np.arange(g.width) < w for g, w in zip(network.space, widths, strict=True)])


class _Timer:
    few_widths = False

    def __init__(
        self,
        network: Network,
        segments: list[Segment],
        args: tuple,
        kwargs: dict,
        repeats: Repeats,
        kept: Kept,
        say: Callable[[str], None] = lambda _: None,
    ):
        self.kept, self.say = kept, say
        self.network, self.list, self.args, self.kwargs, self.repeats = network, segments, args, kwargs, repeats
        self._reference = np.maximum(network.space.widths // 2, 1)  # measured in every group
        self.segment_of = {name: s for s, segment in enumerate(segments) for name in segment.nodes}

    def whole(self, widths: np.ndarray) -> np.ndarray:
        milliseconds, pace = np.zeros((len(widths), 1)), _Pace()
        groups = self._groups(widths)
        reference = [self._prepare(self._module(self._reference))] if len(groups) > 1 else []

        def measure(rows: np.ndarray) -> np.ndarray:
            calls = [self._prepare(self._module(widths[r])) for r in rows]
            return np.array(medians([*reference, *calls], self.repeats, self.network.device))[:, None]

        for rows, spent in self._by_group("whole", widths, groups, measure):
            pace.add(rows, spent[: len(reference)])
            milliseconds[rows] = spent[len(reference) :]
        return pace.corrected(milliseconds)[:, 0]

    def _by_group(
        self, what: str, widths: np.ndarray, groups: Sequence[np.ndarray], measure: Callable[[np.ndarray], np.ndarray]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Measure structures in groups, but for what is kept; say after each how far it is. Yields (rows, measured)."""
        began, done, total, new = time.perf_counter(), 0, len(widths), 0
        for rows in groups:
            name = f"{what} {digest_of(widths[rows].tolist())}"
            new += 0 if name in self.kept else len(rows)
            yield rows, np.array(self.kept.once(name, lambda rows=rows: measure(rows).tolist()))
            done += len(rows)
            left = f"; about {(time.perf_counter() - began) / new * (total - done):.0f} s left" if new else ""
            self.say(f"{done} of {total} structures" + (left if done < total else ""))

    def _module(self, widths: np.ndarray) -> nn.Module:
        alive = self.network.survivors(plan_of(self.network, widths))
        return graph_form(self.network, alive, self.network.tensors).eval()

    def _prepare(self, module: nn.Module) -> Call:
        return lambda: module(*self.args, **self.kwargs)

    def _groups(self, widths: np.ndarray) -> list[np.ndarray]:
        """Rows that take turns: as many as memory and kernel caches hold."""
        heads = max(sum(s.contracts for s in self.list), 1)
        most = max(int(self.network.cost().weight_bytes), 1)
        size = int(np.clip(min(GROUP_OPERATORS // heads, GROUP_BYTES // most), 2, 24))
        return [np.arange(start, min(start + size, len(widths))) for start in range(0, len(widths), size)]


class EagerTimer(_Timer):
    """Segments timed in place, step by step (CPU: clock around every call; CUDA: a chain of events)."""

    def segments(self, widths: np.ndarray) -> np.ndarray:
        milliseconds, pace = np.zeros((len(widths), len(self.list))), _Pace()
        groups = self._groups(widths)
        with torch.inference_mode():
            reference = [self._program(self._reference)] if len(groups) > 1 else []

        def measure(rows: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return self._medians([*reference, *(self._program(widths[r]) for r in rows)])

        for rows, spent in self._by_group("segments", widths, groups, measure):
            pace.add(rows, spent[: len(reference)])
            milliseconds[rows] = spent[len(reference) :]
        return pace.corrected(milliseconds)

    def _medians(self, ready: Sequence[tuple[ProgramAtWidths, dict[str, torch.Tensor]]]) -> np.ndarray:
        """Milliseconds of every segment of structures that take turns, float64 [structures, segments]."""
        runs: list[list[np.ndarray]] = [[] for _ in ready]
        for turn in range(self.repeats.warmup + self.repeats.repeats):
            for (program, tensors), seen in zip(ready, runs, strict=True):
                spent = self._run(program, tensors)
                if turn >= self.repeats.warmup:
                    seen.append(spent)
        return np.array([np.median(seen, axis=0) for seen in runs])

    def _program(self, widths: np.ndarray) -> tuple[ProgramAtWidths, dict[str, torch.Tensor]]:
        alive = self.network.survivors(plan_of(self.network, widths))
        at = self.network.at(alive)
        return at.program(), {name: tensor.detach() for name, tensor in at.tensors.items()}

    def _run(self, program: ProgramAtWidths, tensors: dict[str, torch.Tensor]) -> np.ndarray:
        on_cuda = self.network.device.type == "cuda"
        return (self._run_cuda if on_cuda else self._run_cpu)(program, tensors)

    def _run_cpu(self, program: ProgramAtWidths, tensors: dict[str, torch.Tensor]) -> np.ndarray:
        spent, segment_of, clock = [0.0] * (len(self.list) + 1), self.segment_of, self.repeats.now
        rest = len(self.list)

        def call(step: Step, args: list, kwargs: dict) -> Any:
            start = clock()
            result = step.target(*args, **kwargs)
            spent[segment_of.get(step.node.name, rest)] += clock() - start
            return result

        self.network.program.run(program, tensors, self.args, self.kwargs, call)
        return 1e3 * np.array(spent[:rest])

    def _run_cuda(self, program: ProgramAtWidths, tensors: dict[str, torch.Tensor]) -> np.ndarray:
        marks: list[tuple[int, torch.cuda.Event]] = []

        def mark(segment: int) -> None:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            marks.append((segment, event))

        def call(step: Step, args: list, kwargs: dict) -> Any:
            result = step.target(*args, **kwargs)
            if step.node.name in self.segment_of:
                mark(self.segment_of[step.node.name])
            return result

        torch.cuda.synchronize()
        mark(-1)
        self.network.program.run(program, tensors, self.args, self.kwargs, call)
        torch.cuda.synchronize()
        spent = np.zeros(len(self.list))
        for (_, before), (segment, after) in pairwise(marks):
            spent[segment] += before.elapsed_time(after)
        return spent


class StandaloneTimer(_Timer):
    """Every segment as a module of its own under `compile` or `onnxruntime`; equal key and sizes are built once."""

    few_widths = True

    def __init__(self, runtime: str, network: Network, segments: list[Segment], sizes: Sizes, *rest: Any):
        super().__init__(network, segments, *rest)
        self.runtime, self.sizes = runtime, sizes
        self._known: dict[tuple, float] = {}

    def _prepare(self, module: nn.Module, args: tuple | None = None) -> Call:
        args, kwargs = (self.args, self.kwargs) if args is None else (args, {})
        if self.runtime == "onnxruntime":
            return onnx_session(module, args, kwargs)
        return compiled(module, args, kwargs)

    def segments(self, widths: np.ndarray) -> np.ndarray:
        sizes = self.sizes.of(widths)
        milliseconds = np.zeros((len(widths), len(self.list)))

        def measure(rows: np.ndarray) -> np.ndarray:
            wanted = self._wanted(sizes, rows[0])
            self._measure({key: s for s, key in enumerate(wanted) if key not in self._known}, widths[rows[0]])
            return np.array([[self._known[key] for key in wanted]])

        for rows, spent in self._by_group("segments", widths, list(np.arange(len(widths))[:, None]), measure):
            milliseconds[rows] = spent
            self._known.update(zip(self._wanted(sizes, rows[0]), spent[0].tolist(), strict=True))
        return milliseconds

    def _wanted(self, sizes: np.ndarray, row: int) -> list[tuple]:
        """What says how long each segment takes in a structure: its key, and its sizes there."""
        return [(s.key, *(int(axis_values(axis, sizes)[row]) for axis in s.axes)) for s in self.list]

    def _measure(self, wanted: dict[tuple, int], widths: np.ndarray) -> None:
        """Build and time segments at one structure."""
        if not wanted:
            return
        alive = self.network.survivors(plan_of(self.network, widths))
        at = self.network.at(alive)
        with torch.inference_mode():
            made = segment_modules(
                self.network.program,
                at.program(),
                at.tensors,
                self.args,
                self.kwargs,
                self.segment_of,
                set(wanted.values()),
            )
        calls = [self._prepare(module, inputs) for module, inputs in (made[s] for s in wanted.values())]
        self._known.update(zip(wanted, medians(calls, self.repeats, self.network.device), strict=True))


class _Pace:
    """How fast the machine was while each group ran, by one structure that is in all of them."""

    def __init__(self) -> None:
        self._groups: list[tuple[np.ndarray, float]] = []

    def add(self, rows: np.ndarray, reference: np.ndarray) -> None:
        """reference: its times in this group; empty where there is only one group."""
        self._groups.append((rows, float(reference.sum()) or 1.0))

    def corrected(self, ms: np.ndarray) -> np.ndarray:
        """ms: [n, ...] -> all at the pace of the middle group."""
        usual = float(np.median([total for _, total in self._groups])) if self._groups else 1.0
        ms = ms.copy()
        for rows, total in self._groups:
            ms[rows] *= usual / total
        return ms
