"""Layers, inputs and outputs beyond image classifiers: each is cut, proved, saved and loaded, in both forms."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from metaprune.core.errors import DataError, NotAvailableError, UncoveredOpWarning, UntraceableError
from metaprune.core.imports import import_optional
from metaprune.export.archive import load, save
from metaprune.surgery import cut
from metaprune.testing import assert_cut_equals_mask, perturb, random_plan
from metaprune.testing.networks import Lambda
from metaprune.tracing import trace

Case = tuple[nn.Module, tuple, dict[str, Any]]
CASES: dict[str, Callable[[], Case]] = {}


def case(build: Callable[[], Case]) -> Callable[[], Case]:
    CASES[build.__name__] = build
    return build


def of_rank(kind: str, rank: int) -> Any:
    return getattr(nn, f"{kind}{rank}d")


def _convolutions(rank: int) -> Case:
    conv, norm = of_rank("Conv", rank), of_rank("BatchNorm", rank)
    layers = [conv(3, 8, 3), norm(8), nn.ReLU(), conv(8, 12, 3, groups=4), nn.ReLU(), conv(12, 4, 1)]
    return nn.Sequential(*layers), (torch.randn(2, 3, *[6] * rank),), {}


def _transposed(rank: int, groups: int) -> Case:
    conv, norm = of_rank("ConvTranspose", rank), of_rank("BatchNorm", rank)
    layers = [conv(4, 8, 3), norm(8), nn.ReLU(), conv(8, 12, 2, stride=2, groups=groups), nn.ReLU(), conv(12, 4, 1)]
    return nn.Sequential(*layers), (torch.randn(2, 4, *[3] * rank),), {}


CASES |= {f"conv{rank}d": lambda r=rank: _convolutions(r) for rank in (1, 3)}
CASES |= {f"transposed{r}d, groups {g}": lambda r=r, g=g: _transposed(r, g) for r in (1, 2, 3) for g in (1, 2)}


def _recurrent(kind: str, **options: Any) -> Case:
    """Stem, recurrent layer, head; the batch comes first."""

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        return m.head(m.mid(m.rnn(m.stem(x))[0][:, -1]).relu())

    width = 7 * (2 if options.get("bidirectional") else 1)
    rnn = getattr(nn, kind)(6, 7, batch_first=True, **options)
    model = Lambda(forward, stem=nn.Linear(5, 6), rnn=rnn, mid=nn.Linear(width, 10), head=nn.Linear(10, 3))
    return model, (torch.randn(2, 4, 5),), {}


RECURRENT = {
    "gru": lambda: _recurrent("GRU"),
    "lstm": lambda: _recurrent("LSTM"),
    "rnn": lambda: _recurrent("RNN", nonlinearity="relu"),
    "gru of two layers and directions": lambda: _recurrent("GRU", num_layers=2, bidirectional=True),
    "lstm of two layers and directions, no bias": lambda: _recurrent(
        "LSTM", num_layers=2, bidirectional=True, bias=False
    ),
}
CASES |= RECURRENT


@case
def tied_embedding() -> Case:
    embed, fc, head = nn.Embedding(11, 8), nn.Linear(8, 16), nn.Linear(8, 11, bias=False)
    head.weight = embed.weight
    back = nn.Linear(16, 8)
    model = Lambda(lambda m, t: m.head(m.embed(t) + m.back(m.fc(m.embed(t)).relu())), embed=embed, fc=fc, back=back)
    model.head = head
    return model, (torch.randint(0, 11, (2, 5)),), {}


@case
def group_norm() -> Case:
    layers = [nn.Conv2d(3, 12, 3), nn.GroupNorm(3, 12), nn.SiLU(), nn.Conv2d(12, 8, 3), nn.GroupNorm(1, 8), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(8, 2, 1)), (torch.randn(2, 3, 7, 7),), {}


def _mlp(forward: Callable[..., Any], *args: torch.Tensor, **kwargs: Any) -> Case:
    return Lambda(forward, a=nn.Linear(6, 10), b=nn.Linear(4, 10), out=nn.Linear(10, 3)), args, kwargs


def _two_heads(m: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    h = m.a(x).relu()
    return m.out(h), h.mean(1)


@case
def two_inputs_two_outputs() -> Case:
    return _mlp(lambda m, x, y: (m.out(m.a(x) + m.b(y)), m.out(m.b(y))), torch.randn(2, 6), torch.randn(2, 4))


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 10), nn.Linear(4, 10), nn.Linear(10, 3)

    def forward(self, x: torch.Tensor, *, gain: float = 1.0, extra: dict[str, list[torch.Tensor]]) -> torch.Tensor:
        return self.out((self.a(x) + self.b(extra["y"][0])).relu() * gain)


@case
def keyword_inputs() -> Case:
    return Keywords(), (), {"extra": {"y": [torch.randn(2, 4)]}, "x": torch.randn(2, 6)}


@case
def positional_and_nested_keyword_inputs() -> Case:
    return Keywords(), (torch.randn(2, 6),), {"extra": {"y": [torch.randn(2, 4)]}, "gain": 2.0}


class Scores(NamedTuple):
    logits: torch.Tensor
    level: torch.Tensor


@dataclass
class Registered:
    logits: torch.Tensor
    level: torch.Tensor


@dataclass
class Unregistered:
    logits: torch.Tensor
    level: torch.Tensor


torch.export.register_dataclass(Registered, serialized_type_name="tests.Registered")


@case
def returns_tuple() -> Case:
    return _mlp(_two_heads, torch.randn(2, 6))


@case
def returns_dict() -> Case:
    return _mlp(lambda m, x: dict(zip(("y", "z"), _two_heads(m, x), strict=True)), torch.randn(2, 6))


@case
def returns_namedtuple() -> Case:
    return _mlp(lambda m, x: Scores(*_two_heads(m, x)), torch.randn(2, 6))


@case
def returns_namedtuple_in_a_dict() -> Case:
    return _mlp(lambda m, x: {"all": [Scores(*_two_heads(m, x)), x.sum()]}, torch.randn(2, 6))


@case
def returns_registered_dataclass() -> Case:
    return _mlp(lambda m, x: Registered(*_two_heads(m, x)), torch.randn(2, 6))


@case
def returns_transformers_output() -> Case:
    import_optional("transformers", "hf")
    from transformers.modeling_outputs import SequenceClassifierOutput

    return _mlp(lambda m, x: SequenceClassifierOutput(logits=_two_heads(m, x)[0]), torch.randn(2, 6))


def made(build: Callable[[], Case]) -> Case:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, args, kwargs = build()
    return perturb(model).eval(), args, kwargs


@pytest.mark.parametrize("name", CASES)
def test_cut_proved_saved_and_loaded_in_both_forms(name, tmp_path, recwarn):
    model, args, kwargs = made(CASES[name])
    (pruned,) = assert_cut_equals_mask(model, args, example_kwargs=kwargs, seeds=(0,))
    assert pruned.form == "module", pruned.why
    assert pruned.network.cost(pruned.plan).params < pruned.network.cost().params
    assert not [w for w in recwarn if issubclass(w.category, UncoveredOpWarning)]
    graph = cut(pruned.network, pruned.plan, form="graph")
    for form, this in (("module", pruned), ("graph", graph)):
        save(this, tmp_path / form)
        again = load(tmp_path / form, factory=lambda: copy.deepcopy(model))
        with torch.no_grad():
            expected, actual = this.model.eval()(*args, **kwargs), again(*args, **kwargs)
        assert type(expected).__name__ == type(actual).__name__
        flat = pytree.tree_leaves(expected), pytree.tree_leaves(actual)
        assert len(flat[0]) == len(flat[1])
        assert all(torch.equal(a, b) for a, b in zip(*flat, strict=True) if isinstance(a, torch.Tensor))
        if hasattr(expected, "_asdict"):
            assert list(expected._asdict()) == list(actual._asdict())


@pytest.mark.parametrize("name", RECURRENT)
def test_units_of_a_recurrent_layer_go_from_every_gate_layer_and_direction(name):
    model, args, _ = made(RECURRENT[name])
    network = trace(model, args)
    assert sorted(network.space.widths.tolist()) == [6, 7, 10] and network.uncovered == []
    (units,) = [g for g in network.space if g.width == 7]
    assert {m.parameter for m in units.members if m.parameter.startswith("rnn.")} == {
        n for n, _ in model.named_parameters() if n.startswith("rnn.")
    }
    assert "not prunable: graph output" in network.explain() and "operator without a rule" not in network.explain()


def test_an_operator_without_a_rule_is_named_and_all_around_it_is_pruned():
    """What has no rule is never silent: the warning, `uncovered` and `explain` name it."""

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        h = m.stem(x)
        return m.head(m.mid(torch.cdist(h, h)).relu())

    stem = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 6))
    model = Lambda(forward, stem=stem, mid=nn.Linear(4, 10), head=nn.Linear(10, 3))
    with pytest.warns(UncoveredOpWarning, match="cdist"):
        network = trace(model.eval(), torch.randn(2, 4, 5))
    assert [(u.op, u.module) for u in network.uncovered] == [("cdist", "")]
    assert "no rule for operator cdist (node cdist, module (root))" in network.explain()
    assert sorted(network.space.widths.tolist()) == [9, 10]
    assert cut(network, random_plan(network.space, 0.5, 0)).form == "module"


def test_a_class_that_pytorch_does_not_know_is_refused_by_name():
    model, args, _ = made(lambda: _mlp(lambda m, x: Unregistered(*_two_heads(m, x)), torch.randn(2, 6)))
    with pytest.raises(UntraceableError, match=r"Unregistered.*What to do"):
        trace(model, args)


def test_a_class_without_a_name_in_files_is_refused_when_saved(tmp_path):
    @dataclass
    class Nameless:
        logits: torch.Tensor
        level: torch.Tensor

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.register_dataclass(Nameless)
    model, args, _ = made(lambda: _mlp(lambda m, x: Nameless(*_two_heads(m, x)), torch.randn(2, 6)))
    network = trace(model, args)
    pruned = cut(network, random_plan(network.space, 0.5, 0), form="graph")
    with pytest.raises(NotAvailableError, match="serialized_type_name"):
        save(pruned, tmp_path)


def test_a_file_cannot_name_a_namedtuple_that_is_no_identifier(tmp_path):
    model, args, _ = made(CASES["returns_namedtuple"])
    network = trace(model, args)
    save(cut(network, random_plan(network.space, 0.5, 0), form="graph"), tmp_path)
    text = (tmp_path / "network.json").read_text()
    (tmp_path / "network.json").write_text(text.replace('"logits"', '"__import__(1)"'))
    with pytest.raises(DataError, match="NamedTuple"):
        load(tmp_path)
