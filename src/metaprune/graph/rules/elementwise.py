"""Pointwise operators, broadcasting included: dimensions unify index by index, size-1 broadcasts do not."""

from __future__ import annotations

import torch

from metaprune.graph.call import Call, Labels
from metaprune.graph.rules.registry import rule

# pointwise in effect, though ATen does not tag them so
UNTAGGED = (
    "silu",
    "silu_",
    "feature_dropout_",
    "alpha_dropout_",
    "feature_alpha_dropout",
    "feature_alpha_dropout_",
    "hardswish",
    "hardswish_",
    "hardtanh",
    "hardtanh_",
    "relu6",
    "relu6_",
    "dropout",
    "dropout_",
    "feature_dropout",
    "contiguous",
    "clone",
    "detach",
    "detach_",
    "alias",
    "lift_fresh_copy",
    "copy_",
    "fill_",
    "zero_",
    "masked_fill",
    "masked_fill_",
    "float",
    "double",
    "half",
    "native_dropout",
    "celu",
    "celu_",
    "selu",
    "selu_",
    "alpha_dropout",
    "softplus",
    "log_sigmoid",
    "where",
    "full_like",
    "zeros_like",
    "ones_like",
    "empty_like",
    "rand_like",
    "randn_like",
    "bernoulli",
    "bernoulli_",
    "normal",
    "normal_",
    "uniform_",
    "exponential_",
    "cauchy_",
    "geometric_",
    "log_normal_",
    "random_",
    "_to_copy",
    "nan_to_num",
    "rrelu",
    "mish",
    "hardsigmoid",
    "gelu",
    "gelu_",
    "elu",
    "elu_",
    "expand_as_",
    "clamp_",
    "square",
    "add_",
    "mul_",
    "div_",
    "sub_",
    "numpy_T_",
    "requires_grad_",
    "bitwise_not",
    "__and__",
    "__or__",
    "__xor__",
    "conj",
    "resolve_conj",
    "resolve_neg",
    "lift_fresh",
    "positive",
    "complex",
    "polar",
    "real",
    "imag",
    "_conj",
    "_neg_view",
)


def broadcast(call: Call, operands: list[tuple[Labels, tuple[int, ...]]], out_shape: tuple[int, ...]) -> Labels:
    """Labels of the broadcast of several operands, given as (labels, shape)."""
    out: Labels = [None] * len(out_shape)
    for back in range(1, len(out_shape) + 1):
        size = out_shape[-back]
        seen = False
        for labels, shape in operands:
            if back > len(shape):
                continue
            if shape[-back] != size:  # a size-1 dimension that is broadcast must not vanish
                call.lock(labels[-back], "size-1 dimension broadcast")
            elif not seen:
                out[-back], seen = labels[-back], True
            else:
                call.equate(out[-back], labels[-back])
                out[-back] = call.norm(out[-back])
    return out


def pointwise(call: Call) -> Labels:
    operands = [(call.labels(t), call.shape(t)) for t in call.tensors()]
    return broadcast(call, operands, call.out_shape)


rule(*UNTAGGED)(pointwise)


@rule("to", "type_as")
def convert(call: Call) -> Labels:
    """Keep the labels: a second tensor lends its dtype and device only."""
    return call.labels(call["self"])


def is_pointwise(target: object) -> bool:
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags


@rule("prelu", "_prelu_kernel")
def prelu(call: Call) -> Labels:
    labels = call.labels(call["self"])
    weight = call["weight"]
    if call.shape(weight)[0] == 1 and call.shape(call["self"])[1] != 1:
        call.lock(call.labels(weight)[0], "one slope for all channels")
    else:
        call.equate(labels[1], call.labels(weight)[0])
    return labels


@rule("glu")
def glu(call: Call) -> Labels:
    labels = call.labels(call["self"])
    dim = call["dim"] % len(labels)
    label = labels[dim]
    if label is not None:
        half = len(label) // 2
        call.equate(label[:half], label[half:])
        labels[dim] = label[:half]
    return labels
