"""Networks that a user may bring, and budgets counted again by PyTorch."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from attempt import Attempt
from masked_original import original_error
from material import X, fault_of, samples, small_network
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import metaprune as mp
from metaprune.testing import TOYS, assert_untouched, counted_macs, toy

TOLERANCE = 1e-9  # in float64


class Odd(nn.Module):
    """Two layers, and a forward that is given."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **parts: nn.Module):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
        for name, part in parts.items():
            self.add_module(name, part)
        self.does = forward
        self.register_buffer("count", torch.zeros(1))
        self.seen: list[Any] = []

    def forward(self, x: Tensor) -> Any:
        return self.does(self, x)


def plain(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x).relu())


def _counts(m: Any, x: Tensor) -> Tensor:
    m.count += 1
    return plain(m, x) * m.count


def _scales_input(m: Any, x: Tensor) -> Tensor:
    x.mul_(2)
    return plain(m, x)


def _remembers(m: Any, x: Tensor) -> Tensor:
    m.seen.append(m.a(x))
    return m.b(m.seen[-1].relu())


def _writes_attribute(m: Any, x: Tensor) -> Tensor:
    m.last = m.a(x)
    return m.b(m.last.relu())


def _writes_parameter(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        m.a.weight.mul_(1.0)
    return plain(m, x)


def _forks(m: Any, x: Tensor) -> Tensor:
    return plain(m, x) if x.sum() > 0 else plain(m, -x)


def _raises(m: Any, x: Tensor) -> Tensor:
    raise ValueError("first line\nsecond line")


FORWARDS: dict[str, Callable[[Any, Tensor], Any]] = {
    "returns None": lambda m, x: plain(m, x) and None if False else None,
    "returns a float": lambda m, x: 1.0,
    "returns a text": lambda m, x: "x",
    "returns {}": lambda m, x: {},
    "returns its input": lambda m, x: x,
    "returns a parameter": lambda m, x: m.a.weight,
    "returns zeros": lambda m, x: plain(m, x) * 0,
    "returns NaN": lambda m, x: plain(m, x) / 0 * 0,
    "returns an item": lambda m, x: plain(m, x).sum().item(),
    "returns numpy": lambda m, x: plain(m, x).detach().numpy(),
    "returns a set": lambda m, x: {plain(m, x)},
    "returns a nest": lambda m, x: {"a": [plain(m, x), (m.a(x), None, 3)]},
    "argmax": lambda m, x: plain(m, x).argmax(1),
    "dropout in evaluation": lambda m, x: m.b(F.dropout(m.a(x), 0.5, training=True)),
    "noise": lambda m, x: plain(m, x + torch.randn_like(x)),
    "noise inside": lambda m, x: m.b(m.a(x) + torch.randn(8)),
    "counts its calls": _counts,
    "scales its input": _scales_input,
    "remembers": _remembers,
    "writes an attribute": _writes_attribute,
    "writes a parameter": _writes_parameter,
    "forks on values": _forks,
    "forks on the batch": lambda m, x: plain(m, x) if len(x) > 1 else m.b(m.a(x)),
    "raises": _raises,
    "detaches": lambda m, x: m.b(m.a(x).detach()),
    "data": lambda m, x: m.b(m.a(x).data),
    "numpy inside": lambda m, x: m.b(torch.from_numpy(m.a(x).detach().numpy())),
    "tolist inside": lambda m, x: m.b(torch.tensor(m.a(x).tolist())),
    "autocast": lambda m, x: _autocast(m, x),
    "float64 inside": lambda m, x: m.b(m.a(x).double().float()),
    "sorts channels": lambda m, x: m.b(m.a(x).sort(1).values),
    "top 4 of channels": lambda m, x: m.b(m.a(x).topk(8, 1).values),
    "flips channels": lambda m, x: m.b(m.a(x).flip(1)),
    "rolls channels": lambda m, x: m.b(m.a(x).roll(3, 1)),
    "shuffles": lambda m, x: m.b(m.a(x)[:, torch.randperm(8)]),
    "boolean mask": lambda m, x: m.b(m.a(x) * (m.a(x) > 0)),
    "masked select": lambda m, x: m.a(x)[m.a(x) > 0].sum(),
    "cumsum": lambda m, x: m.b(m.a(x).cumsum(1)),
    "softmax": lambda m, x: m.b(m.a(x).softmax(1)),
    "einsum": lambda m, x: torch.einsum("nc,oc->no", m.a(x), m.b.weight),
    "matmul": lambda m, x: m.a(x) @ m.b.weight.T,
    "deletes": lambda m, x: m.b(torch.cat([m.a(x)[:, :3], m.a(x)[:, 4:], m.a(x)[:, 3:4]], 1)),
    "unfolds": lambda m, x: m.b(m.a(x).unfold(1, 8, 1)[:, 0]),
    "complex": lambda m, x: m.b(torch.view_as_real(m.a(x) + 0j)[..., 0]),
    "fft": lambda m, x: m.b(torch.fft.fft(m.a(x)).real),
    "vmap": lambda m, x: torch.vmap(lambda v: plain(m, v))(x),
    "jacobian": lambda m, x: torch.func.jacrev(lambda v: plain(m, v))(x[0]),
    "inference": lambda m, x: _inference(m, x),
    "a Python loop": lambda m, x: m.b(torch.stack([m.a(v) for v in x])),
    "in-place relu": lambda m, x: m.b(F.relu_(m.a(x))),
    "index_put": lambda m, x: m.b(_put(m.a(x))),
    "checkpoint": lambda m, x: torch.utils.checkpoint.checkpoint(lambda v: plain(m, v), x, use_reentrant=False),
}


def _autocast(m: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return plain(m, x)


def _inference(m: Any, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return plain(m, x)


def _put(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 2] = 1.0
    return y


def _edited(edit: Callable[[nn.Sequential], Any]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        net = small_network()
        return edit(net) or net

    return build


def _tied() -> nn.Module:
    net = Odd(lambda m, x: F.linear(m.a(x).relu(), m.a.weight.T))
    return net


def _one_parameter_twice() -> nn.Module:
    net = Odd(lambda m, x: m.c(m.a(x).relu()) + m.b(m.a(x)), c=nn.Linear(8, 3))
    net.c.weight = net.b.weight  # type: ignore[union-attr]
    return net


def _fill(value: float) -> Callable[[nn.Sequential], None]:
    def edit(net: nn.Sequential) -> None:
        net[0].weight.data.fill_(value)

    return edit


def _expanded(net: nn.Sequential) -> None:
    net[0].weight = nn.Parameter(torch.randn(1, 4).expand(8, 4))


def _view_of_other(net: nn.Sequential) -> None:
    net[3].weight.data = net[3].weight.data.new_zeros(100)[4:52].view(6, 8).normal_()


def _no_deepcopy(net: nn.Sequential) -> None:
    net.lock = (i for i in range(3))  # type: ignore[assignment]


def _hooked(net: nn.Sequential) -> None:
    net[0].register_forward_hook(lambda m, i, o: o * 2)
    net[3].register_forward_pre_hook(lambda m, i: (i[0] + 1,))


def _own_loop(net: nn.Sequential) -> None:
    net.parent = [net]  # type: ignore[assignment]


BUILDS: dict[str, Callable[[], nn.Module]] = {
    "lazy": lambda: nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 3)),
    "empty": nn.Sequential,
    "identity": nn.Identity,
    "one layer": lambda: nn.Linear(4, 3),
    "width 0": lambda: nn.Sequential(nn.Linear(4, 0), nn.Linear(0, 3)),
    "width 1": lambda: nn.Sequential(nn.Linear(4, 1), nn.ReLU(), nn.Linear(1, 3)),
    "meta": _edited(lambda n: n.to("meta")),
    "float16": _edited(lambda n: n.half()),
    "bfloat16": _edited(lambda n: n.bfloat16()),
    "float64": _edited(lambda n: n.double()),
    "training mode": _edited(lambda n: n.train()),
    "frozen": _edited(lambda n: n.requires_grad_(False)),
    "NaN weights": _edited(_fill(float("nan"))),
    "infinite weights": _edited(_fill(float("inf"))),
    "zero weights": _edited(_fill(0.0)),
    "1e38 weights": _edited(_fill(1e38)),
    "expanded weight": _edited(_expanded),
    "weight in a larger storage": _edited(_view_of_other),
    "tied by transpose": _tied,
    "one parameter twice": _one_parameter_twice,
    "hooks": _edited(_hooked),
    "holds itself": _edited(_own_loop),
    "no deepcopy": _edited(_no_deepcopy),
    "DataParallel": _edited(nn.DataParallel),
    "scripted": _edited(torch.jit.script),
    "traced": _edited(lambda n: torch.jit.trace(n, X)),
    "compiled": _edited(lambda n: torch.compile(n, backend="eager")),
    "weight norm": _edited(lambda n: parametrizations.weight_norm(n[0]) and None),
    "spectral norm": _edited(lambda n: parametrizations.spectral_norm(n[0]) and None),
    "orthogonal": _edited(lambda n: parametrizations.orthogonal(n[3]) and None),
    "quantised": _edited(lambda n: torch.ao.quantization.quantize_dynamic(n)),
    "sparse weight": _edited(lambda n: setattr(n[0], "weight", nn.Parameter(n[0].weight.detach().to_sparse()))),
    "one module twice": lambda: (lambda a: nn.Sequential(nn.Linear(4, 8), a, nn.ReLU(), a, nn.Linear(8, 3)))(
        nn.Linear(8, 8)
    ),
    "100 layers": lambda: nn.Sequential(nn.Linear(4, 8), *[nn.Linear(8, 8) for _ in range(98)], nn.Linear(8, 3)),
    "LSTM": lambda: Odd(lambda m, x: m.c(x[:, None])[0][:, -1], c=nn.LSTM(4, 6, batch_first=True)),
    "no module": lambda: plain,
    "a class": lambda: nn.Linear,
    "averaged": _edited(lambda n: torch.optim.swa_utils.AveragedModel(n)),
}
BUILDS |= {name: lambda forward=forward: Odd(forward) for name, forward in FORWARDS.items()}
EXAMPLES: dict[str, Callable[[], Any]] = {
    "of batch 0": lambda: X[:0],
    "of batch 1": lambda: X[:1],
    "None": lambda: None,
    "a list": lambda: [X],
    "a dict": lambda: {"x": X},
    "a text": lambda: "x",
    "()": lambda: (),
    "(None,)": lambda: (None,),
    "two": lambda: (X, X),
    "of another width": lambda: torch.randn(2, 5),
    "NaN": lambda: X * float("nan"),
    "infinite": lambda: X / 0,
    "integers": lambda: X.long(),
    "float64": lambda: X.double(),
    "complex": lambda: X + 0j,
    "on meta": lambda: X.to("meta"),
    "with gradient": lambda: X.clone().requires_grad_(),
    "sparse": lambda: X.to_sparse(),
    "zeros": lambda: torch.zeros(2, 4),
    "a scalar": lambda: torch.tensor(1.0),
    "numpy": lambda: X.numpy(),
    "of no contiguity": lambda: X.T.contiguous().T,
    "a parameter": lambda: nn.Parameter(X),
    "a shape": lambda: (2, 4),
    "expanded": lambda: X[:1].expand(2, 4),
}


def models(_: Path) -> Iterator[Attempt]:
    """Every network alone, and with a short training; every example input. A cut is judged by the masked original."""
    for name, build in BUILDS.items():
        for method in ("magnitude", "auto"):
            yield Attempt(f"{name}, {method}", _pruned(build, lambda: X.clone(), method))
    for name, example in EXAMPLES.items():
        yield Attempt(f"example {name}", _pruned(small_network, example, "magnitude"))


def _pruned(build: Callable[[], Any], example: Callable[[], Any], method: str) -> Callable[[], str | None]:
    def call() -> str | None:
        torch.manual_seed(0)
        model, inputs = build(), example()
        data = None if method == "magnitude" else mp.as_data((samples(), samples()), num_classes=3)
        given = copy.deepcopy(inputs) if isinstance(inputs, Tensor) and inputs.is_leaf else None

        def prune() -> mp.Result:
            return mp.prune(model, inputs, budget="params=70%", method=method, data=data, progress=False)

        if isinstance(model, nn.Module) and not any(map(torch.nn.parameter.is_lazy, model.parameters())):
            with assert_untouched(model):
                result = prune()
        else:
            result = prune()
        if given is not None and given.device.type != "meta" and not torch.equal(given, inputs):
            return "the example was changed" if not given.isnan().any() else None
        return fault_of(result) or _judged(model, inputs, result)

    return call


def _judged(model: nn.Module, inputs: Any, result: mp.Result) -> str | None:
    if (
        result.record.get("compensation") is not None
        or isinstance(model, torch.jit.ScriptModule)
        or hasattr(model, "lock")
    ):
        return None  # other weights than the masked original's, or a model that nobody can copy
    if result.pruned.error is None or any(t.is_meta for t in model.parameters()):
        return None  # said by a warning: there is nothing to compare
    error = original_error(mp.trace(model, inputs), result.pruned)
    return None if error <= TOLERANCE else f"differs from the masked original by {error:.1e}"


SHARES = (10, 25, 50, 90)


def budgets(_: Path) -> Iterator[Attempt]:
    """Cuts of small networks at four budgets, three methods and in rounds; MACs and parameters counted by PyTorch."""
    for name, method, share, metric in itertools.product(
        TOYS, ("magnitude", "uniform", "random"), SHARES, ("macs", "params")
    ):
        rounds = 1 + 2 * (method == "magnitude" and share == 25)
        yield Attempt(
            f"{name}, {method}, {metric} {share}%, {rounds} rounds", _counted(name, method, share, metric, rounds)
        )


def _counted(name: str, method: str, share: int, metric: str, rounds: int) -> Callable[[], str | None]:
    def call() -> str | None:
        net = toy(name)
        batch = next(x.shape[0] for x in [*net.args, *net.kwargs.values()] if isinstance(x, Tensor))
        full = mp.trace(net.model, net.args, net.kwargs).cost()
        result = mp.prune(
            net.model,
            net.args,
            net.kwargs,
            budget={metric: f"{share}%"},
            method=method,
            rounds=rounds,
            verify=False,
            progress=False,
        )
        counted = {"params": sum(p.numel() for p in result.model.parameters())}
        counted["macs"] = counted_macs(copy.deepcopy(result.model).eval(), *net.args, **net.kwargs) / batch
        if counted[metric] > share / 100 * full[metric]:
            return f"{counted[metric]} {metric} counted, {share / 100 * full[metric]} allowed"
        after = result.record["cost"]["after"]
        wrong = [m for m in counted if counted[m] != after[m]]
        return f"{after[wrong[0]]} {wrong[0]} by the record, {counted[wrong[0]]} counted" if wrong else None

    return call
