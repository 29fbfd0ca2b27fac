"""The proof of a cut: sliced output = masked output on the example inputs, in float64."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn
from torch.amp.autocast_mode import _enter_autocast as enter_autocast
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from metaprune.core.batches import with_batch
from metaprune.core.errors import VerificationError
from metaprune.core.modes import modes_restored
from metaprune.core.side_effects import copy_model
from metaprune.elastic.folding import emptied_branches
from metaprune.elastic.masked import run_masked
from metaprune.elastic.weights import SlicedTensors, slice_tensor
from metaprune.graph.call import Survivors
from metaprune.graph.captured import op_name
from metaprune.graph.transformers_models import as_traced
from metaprune.network import Network
from metaprune.surgery.common_draws import Draw, Recorded, Replayed, draws_numbers
from metaprune.values import Plan

Inputs = tuple[tuple, dict[str, Any]]
TOLERANCE = 1e-9  # relative, float64
_DRAWS = 4  # of other weights, none of which changes an output that does not depend on them


def relative_error(actual: Any, expected: Any) -> float:
    """Largest difference over all output tensors, relative to the largest expected entry of each tensor.

    Infinite if structures, shapes or finiteness differ.
    """
    a, b = pytree.tree_leaves(actual), pytree.tree_leaves(expected)
    if len(a) != len(b):
        return float("inf")
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if not isinstance(y, torch.Tensor):
            continue
        if not isinstance(x, torch.Tensor) or x.shape != y.shape:
            return float("inf")
        x, y = (torch.view_as_real(v).double() if v.is_complex() else v.double() for v in (x, y))
        finite = torch.isfinite(y)
        if not torch.equal(torch.isfinite(x), finite) or not torch.equal(x[~finite], y[~finite]):  # NaN equals nothing
            return float("inf")
        difference = (x - y)[finite].abs().max() if finite.any() else torch.zeros(())
        scale = y[finite].abs().max() if finite.any() else torch.ones(())
        worst = max(worst, float(difference / scale if scale > 0 else difference))
    return worst


def to_float64(value: Any) -> Any:
    """Copy nested tensors, those of floating or complex numbers in double precision."""
    return pytree.tree_map(lambda x: _double(x).clone() if isinstance(x, torch.Tensor) else x, value)


def _double(x: torch.Tensor) -> torch.Tensor:
    return x.double() if x.is_floating_point() else x.to(torch.complex128) if x.is_complex() else x


class _Promoted(TorchFunctionMode):
    """Double precision whatever dtypes a forward names: its casts, and tensors that it makes from other data.

    Parameters are cast when they are used, so that no copy of a whole model is ever held.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is enter_autocast:  # which leaves float64 as it is
            return func(*args, **(kwargs or {}))
        if func in (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16):
            func = torch.Tensor.double
        result = func(*(_promoted(a) for a in args), **{n: _promoted(v) for n, v in (kwargs or {}).items()})
        if isinstance(result, torch.Tensor) and result.dtype in _LOW:
            return _double(result)
        return result


_LOW = (torch.float16, torch.bfloat16, torch.float32, torch.complex32, torch.complex64)


def _promoted(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return _double(value) if value.dtype in _LOW else value
    if isinstance(value, torch.dtype):
        return torch.float64 if value.is_floating_point else torch.complex128 if value.is_complex else value
    return type(value)(_promoted(v) for v in value) if type(value) in (list, tuple) else value


@contextmanager
def double_by_default() -> Iterator[None]:
    """Tensors that name no dtype are float64 inside the block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def in_float64(module: nn.Module) -> nn.Module:
    """Copy a module for `call_in_float64`: in eval mode, parameters shared, all other tensors in double precision."""
    return copy_model(module, _double, {id(p): p for p in module.parameters()}).eval()


@torch.no_grad()
def call_in_float64(probe: nn.Module, args: tuple, kwargs: dict[str, Any], traced: bool = False) -> Any:
    """Call a module of `in_float64`, whatever dtypes its forward names; the inputs are copied first.

    traced: with the settings of a trace (no caches), in place of the module's own.
    """
    args, kwargs = to_float64((args, kwargs))
    with double_by_default(), _Promoted(), as_traced(probe) if traced else nullcontext():
        return probe(*args, **kwargs)


def _varied(x: Any) -> Any:
    """Constant inputs (torch.zeros as an example) prove little: noise in 0..1 is added to them."""
    if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.numel() < 2 or (x != x.flatten()[0]).any():
        return x
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    return x + noise.to(x.device)


class _DoubleInterpreter(fx.Interpreter):
    """Runs a graph form with its tensors in double precision, cast when they are used, and its modules in eval mode."""

    def fetch_attr(self, target: str) -> Any:
        value = super().fetch_attr(target)
        if isinstance(value, torch.Tensor):
            return _double(value)
        state = {n: _double(t) for n, t in (*value.named_parameters(), *value.named_buffers())}
        return lambda *args, **kwargs: torch.func.functional_call(value, state, args, kwargs)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        with modes_restored(self.module):
            self.module.eval()
            return super().run(*args, **kwargs)


_DEFECT = "Nothing was changed. This is a defect of an operator rule: please report it with the output of net.explain()"


class _Redrawn(Mapping[str, torch.Tensor]):
    """`tensors` with noise in place of those that are named, as large as they are, made on access."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], names: Collection[str], seed: int):
        self._tensors, self._names, self._seed = tensors, names, seed

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self._tensors[name].detach()
        if name not in self._names or not (tensor.is_floating_point() or tensor.is_complex()):
            return tensor
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(self._seed)).to(tensor)
        return noise * (tensor.abs().square().mean().sqrt() + 1e-3)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class Proof:
    """Runs the sliced graph once and compares with it whatever claims to be equal."""

    def __init__(self, network: Network, alive: Survivors, tensors: Mapping[str, torch.Tensor]):
        self.network, self.alive, self.tensors = network, alive, tensors
        self.args, self.kwargs = pytree.tree_map(_varied, to_float64(network.captured.example))
        self._draws: list[Draw] | None = None
        self._masked: Any = None
        emptied = emptied_branches(network.space, alive)
        self._has_constants = any(b.constant for b in emptied)  # whose rounding is no part of what is proved
        self._draws_numbers = any(draws_numbers(n) for n in network.captured.graph.nodes)
        if self._draws_numbers:
            self._masked = self._run_masked()  # the draws of all others are slices of this one's

    @cached_property
    def sliced(self) -> Any:
        """What the sliced graph returns, with constants of empty branches as the model's type rounds them.

        Raises:
            VerificationError: it does not run.
        """
        try:
            return self._run_sliced(self.tensors)
        except RuntimeError as error:
            raise VerificationError(f"the cut network does not run: {error}\n{_DEFECT}") from error

    @property
    def common_draws(self) -> AbstractContextManager[Any]:
        """A block in which the surviving part of the masked run's random numbers is drawn."""
        return nullcontext() if self._draws is None else Replayed(self._draws, self.alive)

    @cached_property
    def _single(self) -> tuple[Inputs, Any] | None:
        """The first sample and what the sliced graph returns for it; None where samples mix, or it does not run."""
        captured = self.network.captured
        if captured.batch is None or not captured.takes(1) or self._draws_numbers:
            return None
        first = with_batch(self.args, self.kwargs, 1, captured.batch_dim)
        try:
            return first, self._run_sliced(self.tensors, first)
        except Exception:  # not every graph takes a single sample
            return None

    @torch.no_grad()
    def _run_sliced(
        self,
        tensors: Mapping[str, torch.Tensor],
        inputs: Inputs | None = None,
        alive: Survivors | None = None,
        rounded: bool = True,
    ) -> Any:
        alive = self.alive if alive is None else alive
        program = self.network.at(alive).program(dtype=torch.float64, rounded=rounded)
        part = SlicedTensors(tensors, self.network.labelled, alive, torch.float64)
        args, kwargs = to_float64((self.args, self.kwargs) if inputs is None else inputs)
        with torch.random.fork_rng(devices=[]), double_by_default(), self.common_draws:
            return self.network.program.run(program, part, args, kwargs)

    @torch.no_grad()
    def _run_masked(self, inputs: Inputs | None = None) -> Any:
        whole = self.network.at().program(dtype=torch.float64)
        labelled = self.network.labelled
        full = SlicedTensors(self.tensors, labelled, None, torch.float64)
        args, kwargs = to_float64((self.args, self.kwargs) if inputs is None else inputs)
        if not self._draws_numbers:
            with double_by_default():
                return run_masked(self.network.program, whole, labelled, full, self.alive, args, kwargs)
        recorded = Recorded()
        with torch.random.fork_rng(devices=[]), double_by_default(), recorded:
            masked = run_masked(self.network.program, whole, labelled, full, self.alive, args, kwargs, recorded.expect)
        self._draws = recorded.draws
        return masked

    def masked_error(self) -> float:
        """Compare the sliced graph with the masked original; returns the relative error."""
        if self._masked is None and self._single is not None:
            first, sliced = self._single
            if self._has_constants:
                sliced = self._run_sliced(self.tensors, first, rounded=False)
            with contextlib.suppress(Exception):  # not every graph takes a single sample
                error = relative_error(sliced, self._without_dropped(self._run_masked(first)))
                if error <= TOLERANCE:
                    return error
        self._masked = self._run_masked() if self._masked is None else self._masked
        sliced = self._run_sliced(self.tensors, rounded=False) if self._has_constants else self.sliced
        return relative_error(sliced, self._without_dropped(self._masked))

    def vacuous(self) -> str:
        """Say why equality would prove nothing; empty where it does prove something."""
        if not any(isinstance(x, torch.Tensor) for x in pytree.tree_leaves(self.sliced)):
            return "the network returns no tensor"
        if emptied_branches(self.network.space, self.alive):  # nothing of them runs any more
            whole = self._run_sliced(self.tensors, alive=self.network.survivors(Plan()))
            if relative_error(self._without_dropped(whole), self.sliced) > 0:
                return ""
        labels = self.network.labelled.parameters
        cut = {n for n, dims in labels.items() if any(self.alive.cut(x) for x in dims)}
        others = (_Redrawn(self.tensors, cut, seed) for seed in range(_DRAWS))  # units of ReLU may be dead in some
        if cut and all(relative_error(self._run_sliced(tensors), self.sliced) == 0.0 for tensors in others):
            return "the outputs do not depend on what was cut"
        return ""

    def _without_dropped(self, masked: Any) -> Any:
        """The surviving indices of the masked output (all of them, unless outputs were left free)."""
        output = next(n for n in self.network.captured.graph.nodes if n.op == "output")
        leaves, spec = pytree.tree_flatten(masked)
        nodes = pytree.tree_leaves(output.args[0])
        facts = self.network.labelled.facts
        remaining = [
            slice_tensor(leaf, facts[node.name].labels[0] or [], self.alive) if isinstance(leaf, torch.Tensor) else leaf
            for leaf, node in zip(leaves, nodes, strict=True)
        ]
        return pytree.tree_unflatten(remaining, spec)

    def check(self) -> float:
        """Compare the sliced graph with the masked original; returns the relative error.

        Raises:
            VerificationError: they differ, or the output holds NaN.
        """
        outputs = self.sliced if self._single is None else self._single[1]
        leaves = [x for x in pytree.tree_leaves(outputs) if isinstance(x, torch.Tensor) and x.is_floating_point()]
        if any(x.isnan().any() for x in leaves):
            raise VerificationError(
                "the cut network's output holds NaN, which equals nothing: look for NaN in the weights or the example "
                "inputs, or a piece of the network that kept no channel (raise min_keep). Nothing was changed"
            )
        error = self.masked_error()
        if not error <= TOLERANCE:
            raise VerificationError(
                f"the cut network differs from its masked original by {error:.2e} (relative, float64; allowed "
                f"{TOLERANCE}). {self._likely_cause()}"
            )
        return error

    def _likely_cause(self) -> str:
        drawing = [op_name(n.target) for n in self.network.captured.graph.nodes if draws_numbers(n)]
        if not drawing:
            return _DEFECT
        return (
            f"Nothing was changed. The network draws random numbers ({', '.join(dict.fromkeys(drawing))}) that its "
            "original and its cut cannot share: make it deterministic in eval mode"
        )

    @torch.no_grad()
    def graph_error(self, module: fx.GraphModule) -> float:
        """Compare a graph form with the sliced graph (in float64, eval mode); returns the relative error.

        It runs node by node, with one tensor of its own in float64 at a time.
        """
        inputs, expected = ((self.args, self.kwargs), self.sliced) if self._single is None else self._single
        args, kwargs = to_float64(inputs)
        names = [n.target for n in module.graph.nodes if n.op == "placeholder"]
        leaves = [*args, *(kwargs[name] for name in names[len(args) :])]
        with torch.random.fork_rng(devices=[]), self.common_draws, double_by_default(), _Promoted():
            return relative_error(_DoubleInterpreter(module).run(*leaves), expected)

    def probe_error(self, probe: nn.Module) -> float:
        """Compare a module of `in_float64` with the sliced graph; returns the relative error."""
        return relative_error(self.call(probe, self.args, self.kwargs, traced=True), self.sliced)

    def call(self, probe: nn.Module, args: tuple, kwargs: dict[str, Any], traced: bool = False) -> Any:
        """Call a module of `in_float64` with the common draws."""
        with torch.random.fork_rng(devices=[]), self.common_draws:
            return call_in_float64(probe, args, kwargs, traced)
