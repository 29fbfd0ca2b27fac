"""Defects that a review found, each with the input that showed it."""

import json
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import metaprune as mp
from metaprune.core.errors import ConfigError, DataError, VerificationError
from metaprune.export.archive import save
from metaprune.models import create
from metaprune.surgery.keep_module import ModuleRules, module_rules
from metaprune.testing import assert_cut_equals_mask, perturb, random_plan
from metaprune.testing.networks import Lambda
from metaprune.testing.oracles import output_error
from metaprune.values import Constraints

pytestmark = pytest.mark.filterwarnings("ignore")


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return perturb(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).eval())


# ------------------------------------------------------------------------------------------------ files from elsewhere


@pytest.mark.parametrize("field", ["placeholder", "get_attr", "op", "keyword", "gather"])
def test_a_tampered_graph_runs_no_code(tmp_path, field):
    mark = tmp_path / "ran"
    code = f'__import__("pathlib").Path({str(mark)!r}).touch()'
    network = mp.trace(mlp(), torch.randn(2, 5))
    result = mp.cut(network, random_plan(network.space, 0.5, 0), form="graph")
    folder = save(result, tmp_path / "net")
    description = json.loads((folder / "network.json").read_text())
    nodes = description["graph"]["nodes"]
    if field in ("placeholder", "get_attr"):
        next(n for n in nodes if n["op"] == field)["target"] += f"={code}"
    elif field == "op":
        next(n for n in nodes if n["op"] == "call_function")["op"] = "call_method"
    elif field == "keyword":
        next(n for n in nodes if n["op"] == "call_function")["kwargs"]["dict"][f"a={code}, b"] = 1
    else:
        description["graph"]["gathers"][f"x.{code}"] = [0]
    (folder / "network.json").write_text(json.dumps(description))
    with pytest.raises(DataError):
        mp.load(folder, form="graph")(torch.randn(2, 5))
    assert not mark.exists()


def test_an_archive_cannot_ask_for_remote_code(tmp_path):
    model = create("zoo:resnet8")
    result = mp.prune(model, torch.randn(2, *model.input_shape), budget="macs=80%")
    folder = result.save(tmp_path / "net", spec="zoo:resnet8")
    description = json.loads((folder / "network.json").read_text())
    description |= {"spec": "hf:somewhere/else", "options": {"trust_remote_code": True}}
    (folder / "network.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match="trust_remote_code"):
        mp.load(folder)


# ------------------------------------------------------------------------------------------------ the traced graph


class SharedCopy(nn.Module):
    """A contiguous pack, written through one part and read again."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x):
        p = self.qkv(x).reshape(x.shape[0], -1, 3, 2, 4).permute(2, 0, 3, 1, 4).contiguous()
        p[0].mul_(0.5)
        y = nn.functional.scaled_dot_product_attention(p[0], p[1], p[2])
        return self.proj(y.transpose(1, 2).flatten(2))


def test_a_write_into_a_shared_copy_is_not_lost():
    model, x = perturb(SharedCopy().eval()), torch.randn(2, 5, 8)
    whole = mp.cut(mp.trace(model, x), mp.Plan(), form="graph")
    assert output_error(model, whole.model, (x,), {}) < 1e-12
    assert_cut_equals_mask(model, (x,), seeds=(0,))


READS = {
    "slice": lambda p, n: p[:n],
    "unsqueeze": lambda p, n: p.unsqueeze(0)[:, :n],
    "transpose": lambda p, n: p.t()[:, :n].t(),
    "copy": lambda p, n: p.to(torch.float32).clone()[:n],
    "split": lambda p, n: p.split([n, 20 - n])[0],
}


@pytest.mark.parametrize("read", READS)
def test_positions_that_are_not_read_stay(read):
    model = Lambda(lambda m, x: m.b(m.a(x + READS[read](m.p, x.shape[1]))), a=nn.Linear(8, 6), b=nn.Linear(6, 3))
    model.p = nn.Parameter(torch.randn(20, 8))
    network = mp.trace(model.eval(), torch.randn(2, 6, 8))
    assert [g.width for g in network.space] == [6]  # the width of 8 is the input's


@dataclass
class Out:
    logits: torch.Tensor

    def __post_init__(self):
        self.batch = self.logits.shape[0]


def test_a_dataclass_that_looks_at_its_fields():
    torch.export.register_dataclass(Out, serialized_type_name="test_review_findings.Out")
    model = Lambda(lambda m, x: Out(m.inner(x)), inner=mlp()).eval()
    assert [g.width for g in mp.trace(model, torch.randn(2, 5)).space] == [8]
    assert len(mp.trace(model, torch.randn(2, 5), free_outputs=["logits"]).space) == 2


def test_a_norm_of_negative_order_locks():
    model = Lambda(
        lambda m, x: m.b(m.a(x) / (1 + torch.linalg.vector_norm(m.a(x), ord=-1, dim=-1, keepdim=True))),
        a=nn.Linear(6, 12),
        b=nn.Linear(12, 4),
    )
    assert len(mp.trace(model.eval(), torch.randn(2, 6)).space) == 0


# ------------------------------------------------------------------------------------------------ rules and constraints


def test_rules_name_groups_exactly():
    """The group of `2` is not all groups that module `2` has a part in."""
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    space = mp.trace(model, torch.randn(2, 5)).space
    assert space.match(["2"]) == {0, 1}
    assert space.match(["=2"]) == {1}
    rules = ModuleRules(whole=("2",), ties=(("0",),)).applied_to(Constraints())
    assert (rules.whole, rules.ties) == (("=2",), (("=0",),))


class WillNotCopy(nn.Sequential):
    def __deepcopy__(self, memo):
        raise TypeError("no copies")


def test_a_class_that_cannot_be_copied_says_so_at_once():
    model = WillNotCopy(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with pytest.raises(VerificationError, match="no copies"):
        module_rules(mp.trace(model, torch.randn(2, 5)))


def test_one_pattern_is_not_one_per_letter():
    assert Constraints(ignore="a*").ignore == ("a*",)
    with pytest.raises(ConfigError, match="ties"):
        mp.prune(mlp(), torch.randn(2, 5), budget="macs=80%", ties="*l*")
