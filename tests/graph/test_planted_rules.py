"""Deliberately wrong rules: each must be caught (by the proof, or by an error), and the right rules must pass."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mixtures import Mixture, X, by_index
from torch import nn

from metaprune.core.errors import VerificationError
from metaprune.graph import labelling
from metaprune.graph.call import Dim
from metaprune.graph.labels import merge_labels, stack_labels
from metaprune.graph.rules import RULES
from metaprune.graph.rules.elementwise import broadcast
from metaprune.surgery import cut
from metaprune.surgery.verify import TOLERANCE
from metaprune.testing import perturb, random_plan
from metaprune.testing.networks import TOYS, Lambda, toy
from metaprune.tracing import trace

RIGHT = dict(RULES)
# a wrong value, or a wrong shape wherever it surfaces; not what a mistyped plant raises (KeyError, TypeError)
CAUGHT = (VerificationError, RuntimeError, AssertionError, IndexError, ValueError)


def linear_without_input(call):
    return [*call.labels(call["input"])[:-1], call.labels(call["weight"])[0]]


def linear_without_bias(call):
    labels, weight = call.labels(call["input"]), call.labels(call["weight"])
    call.equate(labels[-1], weight[-1])
    return [*labels[:-1], weight[0]]


def add_without_unifying(call):
    return call.labels(call.tensors()[0])


def cat_reversed(call):
    tensors = list(reversed(call["tensors"]))
    out = call.labels(tensors[0])
    out[call["dim"]] = stack_labels([(call.labels(t)[call["dim"]], call.shape(t)[call["dim"]]) for t in tensors])
    return out


def split_off_by_one(call):
    outputs = RIGHT["split_with_sizes"](call)
    label = call.labels(call["self"])[call["dim"]]
    return [
        [*o[:1], np.roll(label, -1, axis=0)[s : s + len(o[1])], *o[2:]] for o, s in zip(outputs, (0, 4), strict=True)
    ]


def group_conv_without_k(call):
    if call["groups"] == 1 or call.shape(call["weight"])[1] == 1:
        return RIGHT["conv2d"](call)
    groups, w = call["groups"], call.labels(call["weight"])
    rows, offsets = call.fresh(groups), call.fresh(call.shape(call["weight"])[0] // groups)
    labels = call.labels(call["input"])
    call.equate(
        labels[1],
        merge_labels([(rows, groups), (call.fresh(call.shape(call["weight"])[1]), call.shape(call["weight"])[1])]),
    )
    call.equate(w[0], merge_labels([(rows, groups), (offsets, len(offsets))]))
    call.set("groups", lambda alive: alive.count(rows))
    return [labels[0], w[0], None, None]


def group_conv_keeps_groups(call):
    out = RIGHT["conv2d"](call)
    call.fact.patches = [p for p in call.fact.patches if p.argument != "groups"]
    return out


def without_masked_statistics(name):
    def rule(call):
        out = RIGHT[name](call)
        call.fact.masked = None
        return out

    return rule


def norm_without_parameters(call):
    labels = call.labels(call["input"])
    call.scale("normalized_shape", labels[-1], 0)
    return labels


def view_axes_swapped(call):
    """Heads and head dimension in the wrong order: the flat label is read column-major."""
    before = call.labels(call["self"])
    heads, width = call.out_shape[-2:]
    rows, columns = call.fresh(heads), call.fresh(width)
    call.equate(before[-1], merge_labels([(columns, width), (rows, heads)]))
    call.scale("size", rows, 2)
    call.scale("size", columns, 3)
    return [*before[:-1], rows, columns]


def sdpa_without_tying_q_and_k(call):
    q, k, v = (call.labels(call[n]) for n in ("query", "key", "value"))
    lead = broadcast(call, [(x[:-2], call.shape(call["query"])[:-2]) for x in (q, k, v)], call.out_shape[:-2])
    return [*lead, q[-2], v[-1]]


def sdpa_with_loose_scale(call):
    out = RIGHT["scaled_dot_product_attention"](call)
    width = call.labels(call["query"])[-1]
    call.set("scale", lambda alive: alive.count(width) ** -0.5)
    call.fact.masked = lambda args, alive: F.scaled_dot_product_attention(args["query"], args["key"], args["value"])
    return out


def batch_norm_not_tied(call):
    return call.labels(call["input"])


def batch_norm_forgets_the_mean(call):
    labels = call.labels(call["input"])
    for name in ("weight", "bias", "running_var"):
        call.equate(call.labels(call[name])[0], labels[1])
    other = call.labels(call["running_mean"])[0]
    call.equate(np.roll(other, 1, axis=0), labels[1])
    return labels


def softmax_over_channels(call):
    return call.labels(call["self"])


def look_up_untied(call):
    call.positions(call["indices"][0])
    return [None, *call.labels(call["self"])[1:]]


def slice_start_not_recomputed(call):
    out = RIGHT["slice"](call)
    call.fact.patches = [p for p in call.fact.patches if p.argument != "start"]
    return out


def pad_swapped(call):
    labels, (*_, low, high) = call.labels(call["self"]), call["pad"]
    before, after = call.fresh(high), call.fresh(low)
    labels[1] = stack_labels([(before, high), (labels[1], call.shape(call["self"])[1]), (after, low)])
    call.set("pad", lambda alive: alive.count(before), 4)
    call.set("pad", lambda alive: alive.count(after), 5)
    return labels


def permute_without_moving(call):
    return call.labels(call["self"])


def flatten_column_major(call):
    labels, shape = call.labels(call["self"]), call.shape(call["self"])
    return [labels[0], merge_labels([(None, shape[2] * shape[3]), (labels[1], shape[1])])]


def shuffle_not_recomputed(call):
    labels = call.labels(call.node.args[0])
    labels[1] = labels[1][np.asarray(call.node.args[2])][::-1]
    return labels


def embedding_one_off(call):
    return [*call.labels(call["indices"]), np.roll(call.labels(call["weight"])[1], 1, axis=0)]


def matmul_without_contraction(call):
    a, b = (call.labels(call[n]) for n in ("self", "other"))
    call.macs(Dim(None, 1))
    return [*a[:-1], b[-1]]


def glu_halves_apart(call):
    labels = call.labels(call["self"])
    labels[-1] = labels[-1][: len(labels[-1]) // 2]
    return labels


def gru_gates_apart(call):
    out = RIGHT["gru"](call)
    weight = call.labels(call["params"][1])[0]
    call.fact.labels = [[None, None, np.roll(weight[: len(out[0][2])], 1, axis=0)], out[1]]
    return call.fact.labels


def var_over_the_masked_zeros(call):
    out = RIGHT["var"](call)
    call.fact.masked = None
    return out


def pointwise_kernel_mixes_positions(call):
    out = RIGHT["conv1d"](call)
    return [*out[:-1], None if out[-1] is None else np.roll(out[-1], 1, axis=0)]


def recurrent_network():
    model = Lambda(lambda m, x: m.out(m.gru(m.a(x))[0]), a=nn.Linear(4, 6), gru=nn.GRU(6, 5), out=nn.Linear(5, 3))
    return perturb(model, scale=0.3).eval(), (torch.randn(2, 4, 4),)


def moments_network():
    model = Lambda(
        lambda m, x: m.b(m.a(x) / (1 + m.a(x).var(-1, keepdim=True))), a=nn.Linear(6, 12), b=nn.Linear(12, 4)
    )
    return perturb(model, scale=0.3).eval(), (torch.randn(2, 6),)


def pointwise_kernel_network():
    """Channels are the positions of a 1x1 convolution (CoaT's aggregation)."""
    model = Lambda(lambda m, x: m.b(m.mix(m.a(x))), a=nn.Linear(6, 12), mix=nn.Conv1d(3, 3, 1), b=nn.Linear(12, 4))
    return perturb(model, scale=0.3).eval(), (torch.randn(2, 3, 6),)


def sliced_network():
    def forward(m, x):
        h = m.a(x)
        return m.b(h[:, 3:9]) + m.c(h[:, :5])

    model = Lambda(forward, a=nn.Linear(6, 12), b=nn.Linear(6, 4), c=nn.Linear(5, 4))
    return perturb(model).eval(), (torch.randn(2, 6),)


def channel_softmax():
    model = Lambda(lambda m, x: m.b(m.a(x).softmax(-1)), a=nn.Linear(6, 12), b=nn.Linear(12, 4))
    return perturb(model, scale=0.5).eval(), (torch.randn(2, 6),)


def sdpa_network():
    def forward(m, x):
        q, k, v = (p(x).view(*x.shape[:2], 2, 6).transpose(1, 2) for p in (m.q, m.k, m.v))
        y = F.scaled_dot_product_attention(q, k, v)
        return m.out(y.transpose(1, 2).flatten(2))

    model = Lambda(forward, q=nn.Linear(6, 12), k=nn.Linear(6, 12), v=nn.Linear(6, 12), out=nn.Linear(12, 4))
    return perturb(model, scale=0.5).eval(), (torch.randn(2, 5, 6),)


def embedding_network():
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 4))
    return perturb(model).eval(), (torch.randint(0, 9, (2, 5)),)


def mixture_network():
    return perturb(Mixture(by_index), scale=0.5).eval(), (X,)


def mixture_unscaled():
    return perturb(Mixture(by_index, "unscaled"), scale=0.5).eval(), (X,)


def mixture_of_late_softmax():
    return perturb(Mixture(by_index, "after"), scale=0.5).eval(), (X,)


def toy_pair(name):
    made = toy(name)
    return made.model, made.args


PLANTED = {
    "linear forgets its input": ("linear", linear_without_input, "flatten"),
    "linear forgets its bias": ("linear", linear_without_bias, "flatten"),
    "add does not unify": ("add", add_without_unifying, "residual"),
    "cat in the wrong order": ("cat", cat_reversed, "concat"),
    "split off by one": ("split_with_sizes", split_off_by_one, "split"),
    "grouped conv without K": ("conv2d", group_conv_without_k, "grouped"),
    "grouped conv keeps its groups": ("conv2d", group_conv_keeps_groups, "grouped"),
    "layer norm over the masked zeros": ("layer_norm", without_masked_statistics("layer_norm"), "tied"),
    "layer norm parameters not tied": ("layer_norm", norm_without_parameters, "tied"),
    "group norm over the masked zeros": ("group_norm", without_masked_statistics("group_norm"), "group_norm"),
    "rms norm over the masked zeros": ("rms_norm", without_masked_statistics("rms_norm"), "gated"),
    "view with swapped axes": ("view", view_axes_swapped, sdpa_network),
    "sdpa does not tie q and k": ("scaled_dot_product_attention", sdpa_without_tying_q_and_k, sdpa_network),
    "sdpa scale follows the width": ("scaled_dot_product_attention", sdpa_with_loose_scale, sdpa_network),
    "batch norm not tied": ("batch_norm", batch_norm_not_tied, "residual"),
    "batch norm mean one off": ("batch_norm", batch_norm_forgets_the_mean, "residual"),
    "softmax over channels": ("softmax", softmax_over_channels, channel_softmax),
    "slice start not recomputed": ("slice", slice_start_not_recomputed, sliced_network),
    "pad low and high swapped": ("pad", pad_swapped, "pad_shortcut"),
    "transpose does not move labels": ("transpose", permute_without_moving, sdpa_network),
    "flatten column-major": ("flatten", flatten_column_major, "flatten"),
    "shuffle without ranks": ("permute_channels", shuffle_not_recomputed, "shuffle"),
    "embedding columns one off": ("embedding", embedding_one_off, embedding_network),
    "matmul without contraction": ("matmul", matmul_without_contraction, "written_out_attention"),
    "glu halves apart": ("glu", glu_halves_apart, "gated"),
    "gru units one off": ("gru", gru_gates_apart, recurrent_network),
    "variance over the masked zeros": ("var", var_over_the_masked_zeros, moments_network),
    "choice among the masked zeros": ("topk", without_masked_statistics("topk"), mixture_of_late_softmax),
    "router's softmax over the masked zeros": ("softmax", without_masked_statistics("softmax"), mixture_unscaled),
    "look-up not tied to the choice": ("index", look_up_untied, mixture_network),
    "1x1 kernel mixes positions": ("conv1d", pointwise_kernel_mixes_positions, pointwise_kernel_network),
}


def prove(make):
    model, args = toy_pair(make) if isinstance(make, str) else make()
    network = trace(model, args)
    return [cut(network, random_plan(network.space, 0.5, seed), form="graph").error for seed in range(4)]


@pytest.mark.parametrize(
    "make", dict.fromkeys(m for _, _, m in PLANTED.values()), ids=lambda m: getattr(m, "__name__", m)
)
def test_control(make):
    assert max(prove(make)) <= TOLERANCE


@pytest.mark.parametrize("name", PLANTED)
def test_is_caught(name, monkeypatch):
    operator, wrong, make = PLANTED[name]
    assert operator in RULES or operator == "add"
    called = []
    monkeypatch.setitem(labelling.RULES, operator, lambda call: (called.append(1), wrong(call))[1])
    with pytest.raises(CAUGHT):
        prove(make)
    assert called, "the planted rule was not even used"


def test_every_planted_network_is_a_real_one():
    assert {m for _, _, m in PLANTED.values() if isinstance(m, str)} <= set(TOYS)
