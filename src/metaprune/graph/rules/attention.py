"""Scaled dot-product attention: heads, head dimensions (q with k, v with the output), tokens."""

from __future__ import annotations

from metaprune.graph.call import Call, Dim, Labels
from metaprune.graph.labels import merge_labels
from metaprune.graph.rules.elementwise import broadcast
from metaprune.graph.rules.registry import rule


@rule("scaled_dot_product_attention")
def sdpa(call: Call) -> Labels:
    """query [..., H, L, E], key [..., S, E], value [..., S, V]; the default scale is pinned to the original E."""
    q, k, v = call["query"], call["key"], call["value"]
    ql, kl, vl = call.labels(q), call.labels(k), call.labels(v)
    call.equate(ql[-1], kl[-1])
    call.consume("query", -1)
    for label in (kl[-2], vl[-2]):
        call.lock(label, "attention keys are tokens, not channels")
    if call["is_causal"]:
        call.lock(ql[-2], "causal order of tokens")
    lead = ql[:-2]
    if call["enable_gqa"]:
        _grouped_query(call, ql, kl, vl)
    else:
        shape = call.out_shape[:-2]
        lead = broadcast(call, [(ql[:-2], shape), (kl[:-2], call.shape(k)[:-2]), (vl[:-2], call.shape(v)[:-2])], shape)
    mask = call["attn_mask"]
    if mask is not None:
        scores = [*lead, ql[-2], None]
        shape = (*call.out_shape[:-1], call.shape(k)[-2])
        broadcast(call, [(scores, shape), (call.labels(mask), call.shape(mask))], shape)
    if call["scale"] is None:
        scale = float(call.shape(q)[-1]) ** -0.5
        call.set("scale", lambda alive: scale)
    rows = [Dim(label, size) for label, size in zip([*lead, ql[-2]], call.out_symbolic[:-1], strict=True)]
    keys = Dim(None, call.symbolic(k)[-2])
    call.macs(*rows, keys, Dim(ql[-1], call.shape(q)[-1]))
    call.macs(*rows, keys, Dim(vl[-1], call.shape(v)[-1]))
    return [*lead, ql[-2], vl[-1]]


def _grouped_query(call: Call, ql: Labels, kl: Labels, vl: Labels) -> None:
    """Query head (i, r) reads key/value head i: {KV_i, R_r}."""
    heads, kv_heads = call.shape(call["query"])[-3], call.shape(call["key"])[-3]
    call.equate(kl[-3], vl[-3])
    repeat = heads // kv_heads
    within = call.fresh(repeat) if repeat > 1 else None
    call.equate(ql[-3], merge_labels([(kl[-3], kv_heads), (within, repeat)]))
    for i in range(len(ql) - 3):
        call.equate(ql[i], kl[i])
        call.equate(ql[i], vl[i])
