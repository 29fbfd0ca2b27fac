"""What the tests of alibaba/TinyNeuralNetwork prune (modifier_prune_test.py, modifier_test.py), written anew."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from outside_spec import Builder, conv, draw, linear, norm, same, spec
from torch import Tensor, nn

from metaprune.testing.networks import Lambda

IMAGE = (1, 3, 9, 9)


def _res2net(m: Any, x: Tensor) -> Tensor:
    a, b, c, d = m.a(x).chunk(4, 1)
    a = m.b(a)
    b = m.c(a + b)
    return m.e(torch.cat([a, b, m.d(b + c), d], 1))


def _add_cat_groups(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.f(torch.cat([m.b(y) + m.c(y), m.e(m.d(x))], 1))


def _two_cats(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = F.relu(m.a(x))
    middle = m.c(y)
    return m.e(torch.cat([m.b(y), middle], 1)), m.f(torch.cat([middle, m.d(y)], 1))


def _split_groups(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    first, second = m.a(x).chunk(2, 1)
    return m.d(m.b(x) + first), m.e(second + m.c(x))


def _inverted(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return y + m.norm(m.d(m.c(m.b(y))))


def _shuffle(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    n, c, h, w = y.shape
    return m.b(y.reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, -1, h, w))


def _shuffle_half(m: Any, x: Tensor) -> Tensor:
    left, right = m.a(x).chunk(2, 1)
    return m.e(torch.cat([left, m.d(m.c(m.b(right)))], 1))


def _frames(m: Any, x: Tensor) -> Tensor:
    """[batch, 1, bands, time], run through time first."""
    y = m.norm(m.fc(x.permute(3, 0, 1, 2).reshape(-1, x.shape[2])))
    return m.rnn(y.reshape(x.shape[3], x.shape[0], -1))[0]


def _cat_split_groups(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    first, second = torch.cat([m.a(x), m.b(x)], 1).split(8, 1)
    return m.c(first), m.d(second)


def _split_linear(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    first, second = m.a(x).split((2, 6), 2)
    return m.b(first), m.c(second)


HEAD = 16  # 64 in the tests


def _heads(x: Tensor) -> Tensor:
    return x.reshape(1, x.shape[1], x.shape[2] // HEAD, HEAD).permute(0, 2, 1, 3)


def _patches(m: Any, x: Tensor) -> Tensor:
    y = m.stem(x).flatten(2).transpose(-1, -2)
    return torch.cat([torch.ones(1, 1, y.shape[-1], dtype=y.dtype), y], 1)


def _scores(m: Any, x: Tensor) -> Tensor:
    y = _patches(m, x)
    return m.c(_heads(m.a(y)) @ _heads(m.b(y)).transpose(-1, -2))


def _attention(m: Any, y: Tensor) -> Tensor:
    q, k, v = _heads(m.a(y)), _heads(m.b(y)), _heads(m.c(y))
    mixed = (torch.softmax(q @ k.transpose(-1, -2), -1) @ v).permute(0, 2, 1, 3)
    out = m.d(mixed.reshape(mixed.shape[1], mixed.shape[2] * mixed.shape[3]))
    return y + out.reshape(1, *out.shape)


ATTENTION = {name: linear(96, 96) for name in "abcd"}
PRUNED: dict[str, Builder] = {
    "pixel_shuffle": spec(lambda m, x: m.b(F.pixel_shuffle(m.a(x), 2)), IMAGE, a=same(3, 16), b=same(4, 4)),
    "cat": spec(
        lambda m, x: m.d(m.c(torch.cat([m.a(x), m.b(x)], 1)).view(1, -1)),
        IMAGE, a=conv(3, 8), b=conv(3, 8), c=conv(16, 32), d=linear(800, 100),
    ),
    "padding": spec(
        lambda m, x: m.d(F.pad(torch.cat([m.a(x), m.b(x)], 1) + m.c(x), (1, 1, 1, 1))),
        IMAGE, a=same(3, 8), b=same(3, 8), c=same(3, 16), d=conv(16, 32),
    ),
    "cat_add": spec(
        lambda m, x: m.d(torch.cat([m.a(x), m.b(x)], 1) + m.c(x)),
        IMAGE, a=same(3, 8), b=same(3, 8), c=same(3, 16), d=same(16, 32),
    ),
    "flatten": spec(
        lambda m, x: m.e(m.d(m.c(m.b(m.a(x)).flatten(1)))),
        IMAGE, a=conv(3, 16), b=conv(16, 32), c=nn.Dropout, d=linear(800, 100), e=linear(100, 10),
    ),
    "loop_cat": spec(
        lambda m, x: m.b(torch.cat([F.relu_(y) for y in [m.a(x)] * 4], 1)), IMAGE, a=conv(3, 16), b=conv(64, 128)
    ),
    "group_cat": spec(
        lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)),
        IMAGE, a=conv(3, 16), b=conv(3, 32), c=conv(48, 64, groups=4),
    ),
    "group": spec(
        lambda m, x: m.c(m.b(m.a(x))), IMAGE, a=conv(3, 16), b=conv(16, 32, groups=8), c=conv(32, 32)
    ),
    "multi_group": spec(
        lambda m, x: (lambda y: (m.b(y), m.c(y)))(m.a(x)),
        IMAGE, a=conv(3, 16), b=conv(16, 32, groups=4), c=conv(16, 32, groups=8),
    ),
    "add_cat_group": spec(
        _add_cat_groups, IMAGE, a=conv(3, 16), b=conv(16, 32, groups=2), c=conv(16, 32, groups=4),
        d=conv(3, 16), e=conv(16, 32, groups=8), f=conv(64, 64),
    ),
    "multi_cat": spec(
        _two_cats, IMAGE, a=conv(3, 8), b=conv(8, 16), c=conv(8, 16, groups=4), d=conv(8, 16), e=conv(32, 64),
        f=conv(32, 64),
    ),
    "split_group": spec(
        _split_groups, IMAGE, a=conv(3, 32), b=conv(3, 16), c=conv(3, 16), d=conv(16, 32, groups=2),
        e=conv(16, 32, groups=4),
    ),
    "mbv2_block": spec(
        _inverted, IMAGE, a=conv(3, 8, 1), b=conv(8, 16, 1), c=same(16, 16, groups=16), d=conv(16, 8, 1), norm=norm(8)
    ),
    "res2net_block": spec(
        _res2net, IMAGE, a=conv(3, 64, 1), b=conv(16, 16, 1, groups=8), c=conv(16, 16, 1, groups=2),
        d=conv(16, 16, 1), e=conv(64, 64, 1),
    ),
    "loop_conv": spec(lambda m, x: (lambda y: m.b(y + y + y))(m.a(x)), IMAGE, a=conv(3, 16), b=conv(16, 32)),
    "shuffle_block": spec(_shuffle, IMAGE, a=conv(3, 16), b=conv(16, 32)),
    "multi_dim_fc": spec(lambda m, x: m.b(m.a(x)), (16, 16, 8), a=linear(8, 32), b=linear(32, 32)),
    "issue_65": spec(
        _frames, (4, 1, 129, 11), fc=linear(129, 64, bias=False), norm=partial(nn.BatchNorm1d, 64),
        rnn=partial(nn.LSTM, 64, 32, num_layers=3, dropout=0.4),
    ),
    "cat_split_group": spec(
        _cat_split_groups, IMAGE, a=conv(3, 8), b=conv(3, 8), c=conv(8, 32, groups=2), d=conv(8, 32, groups=4)
    ),
    "split_linear": spec(_split_linear, (1, 4, 8), a=linear(8, 8), b=linear(2, 32), c=linear(6, 32)),
    "split_cat": spec(
        lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)), (16, 8), a=linear(8, 16), b=linear(8, 16), c=linear(32, 32)
    ),
    "batch_cat": spec(
        lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 0)), (16, 8), a=linear(8, 16), b=linear(8, 16), c=linear(16, 32)
    ),
    "batch_group_cat": spec(
        lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 0)),
        (1, 3, 3, 3), a=conv(3, 16, 1), b=conv(3, 16, 1), c=conv(16, 32, 1, groups=4),
    ),
    "cat_default_dim": spec(
        lambda m, x: m.c(torch.cat([m.a(x), m.b(x)])), (2, 8), a=linear(8, 16), b=linear(8, 16), c=linear(16, 32)
    ),
    "transformer_reshape": spec(
        lambda m, x: m.b(m.a(x).reshape(1, x.shape[0], -1, 16)), (17, 96), a=linear(96, 96), b=linear(16, 16)
    ),
    "transformer_matmul": spec(
        _scores, (1, 3, 32, 32), stem=conv(3, 96, 8, stride=8), a=linear(96, 96), b=linear(96, 96), c=linear(17, 17)
    ),
    "transformer_reshape_transpose": spec(_attention, (1, 17, 96), **ATTENTION),
    "conv_transformer_reshape_transpose": spec(
        lambda m, x: _attention(m, _patches(m, x)), (1, 3, 32, 32), stem=conv(3, 96, 8, stride=8), **ATTENTION
    ),
    "reshape_prune_node": spec(
        lambda m, x: m.b(m.a(x).reshape(1, 2, 16).transpose(1, 2)), (1, 16), a=linear(16, 32), b=linear(2, 64)
    ),
    "channel_shuffle": spec(_shuffle, (1, 3, 6, 6), a=conv(3, 16), b=conv(16, 32)),
    "shufflenetv2_chunk": spec(
        _shuffle_half, IMAGE, a=conv(3, 16, 1), b=conv(8, 8, 1), c=conv(8, 8, 1, groups=8), d=conv(8, 8, 1),
        e=conv(16, 32, 1),
    ),
    "prelu": spec(
        lambda m, x: m.b(m.act(m.a(x))), IMAGE, a=conv(3, 16, 1), act=partial(nn.PReLU, 16), b=conv(16, 32, 1)
    ),
    "bn_compensation": spec(lambda m, x: m.a(m.norm(x)), (1, 3, 5, 5), norm=norm(3), a=conv(3, 6, 1)),
    "list_output": spec(
        lambda m, x: (lambda y: (m.b(y), [m.c(y), m.d(y)]))(m.a(x)),
        (1, 8), a=linear(8, 8), b=linear(8, 16), c=linear(8, 32), d=linear(8, 64),
    ),
}  # fmt: skip


def _case_1(m: Any, x: Tensor) -> Tensor:
    return m.a(x).reshape(2, 4) + m.c(m.b(x).reshape(8, 2).transpose(0, 1))


def _case_2(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    first, second = torch.cat([m.a(x), m.b(x)], 1).split(4, 1)
    return m.c(first), m.d(second)


def _case_3(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.b(torch.cat([y, y.reshape(4, 2).transpose(0, 1)], 0))


def _case_5(m: Any, x: Tensor, z: Tensor) -> Tensor:
    return m.d(m.b(m.a(x).reshape(2, 4).transpose(0, 1)) + m.c(z).reshape(4, 2))


def _case_7(m: Any, x: Tensor, z: Tensor) -> Tensor:
    return m.d(m.a(x).reshape(2, 4) + m.c(m.b(z).transpose(0, 1)))


def _case_8(m: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = m.a(x)
    return m.b(y.reshape(2, 4)), m.c(y.reshape(4, 2)), m.d(y)


def _case_9(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m.a(x)
    return m.b(y.reshape(2, 3)), m.c(y.reshape(3, 2))


def _case_11(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    shared = m.c(x)
    return m.d(m.a(x) + torch.cat([m.b(x), shared], 1)), m.g(shared + torch.cat([m.e(x), m.f(x)], 1))


def _case_12(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.b(y + y.reshape(8, 1).reshape(1, 8))


def _case_13(m: Any, x: Tensor) -> Tensor:
    first, second = m.a(x).split(8, 1)
    return m.b(first + second.reshape(8, 1).reshape(1, 8))


def _case_14(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m.a(x)
    return m.d(y.reshape(3, 4)), m.e(y + torch.cat([m.b(x), m.c(x)], 1))


CASES: dict[str, Builder] = {
    "case_0": spec(
        lambda m, x: m.c(m.b(m.a(x)).view(1, -1)), IMAGE, a=conv(3, 8), b=conv(8, 16), c=linear(400, 100)
    ),
    "case_1": spec(_case_1, (1, 4), a=linear(4, 8), b=linear(4, 16), c=linear(8, 4)),
    "case_2": spec(_case_2, (1, 4), **{name: linear(4, 4) for name in "abcd"}),
    "case_3": spec(_case_3, (2, 4), a=linear(4, 4), b=linear(4, 4)),
    "case_4": spec(lambda m, x: m.b(m.a(x).reshape(4, 8)), (1, 4), a=linear(4, 32), b=linear(8, 16)),
    "case_5": spec(
        _case_5, (1, 2, 2, 2), (1, 2), a=conv(2, 2, 1), b=linear(2, 2), c=linear(2, 8), d=linear(2, 8)
    ),
    "case_6": spec(
        lambda m, x: m.c(m.b(m.a(x).reshape(2, 4))), (1, 2), a=linear(2, 8), b=linear(4, 8), c=linear(8, 16)
    ),
    "case_7": spec(
        _case_7, (1, 2, 2, 2), (4, 2), a=conv(2, 2, 1), b=linear(2, 2), c=linear(4, 4), d=linear(4, 8)
    ),
    "case_8": spec(_case_8, (1, 2), a=linear(2, 8), b=linear(4, 8), c=linear(2, 8), d=linear(8, 8)),
    "case_9": spec(_case_9, (1, 2), a=linear(2, 6), b=linear(3, 6), c=linear(2, 4)),
    "case_10": spec(
        lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)), (1, 2), a=linear(2, 4), b=linear(2, 8), c=linear(12, 12)
    ),
    "case_11": spec(
        _case_11, (1, 2), a=linear(2, 12), b=linear(2, 4), c=linear(2, 8), d=linear(12, 12), e=linear(2, 4),
        f=linear(2, 4), g=linear(8, 8),
    ),
    "case_12": spec(_case_12, (1, 2), a=linear(2, 8), b=linear(8, 8)),
    "case_13": spec(_case_13, (1, 2), a=linear(2, 16), b=linear(8, 8)),
    "case_14": spec(
        _case_14, (1, 2), a=linear(2, 12), b=linear(2, 4), c=linear(2, 8), d=linear(4, 4), e=linear(12, 12)
    ),
    "case_15": spec(
        lambda m, x: m.d(m.c(m.b(m.a(x).reshape(2, 4)).transpose(0, 1))),
        (1, 4), a=linear(4, 8), b=linear(4, 8), c=linear(2, 4), d=linear(4, 8),
    ),
}  # fmt: skip


def _recurrent(cell: str, layers: int, both: bool, first: bool, bias: bool, proj: int) -> Builder:
    def build() -> Any:
        more = {"proj_size": proj} if proj else {}
        rnn = getattr(nn, cell)(
            10, 20, num_layers=layers, bidirectional=both, batch_first=first, bias=bias, **more
        )  # fmt: skip
        head = nn.Linear((proj or 20) * (1 + both), 8)
        return Lambda(lambda m, x: m.fc(m.rnn(x)[0]), rnn=rnn, fc=head), draw((7, 4, 10)), {}

    return build


VARIANTS = ((1, False, False, True), (2, True, False, True), (2, True, True, False))
RECURRENT = {
    f"{cell} {layers} layers{' both ways' * both}{' batch first' * first}": _recurrent(
        cell, layers, both, first, bias, 0
    )
    for cell, (layers, both, first, bias) in product(("RNN", "GRU", "LSTM"), VARIANTS)
} | {
    f"LSTM {layers} layers projected{' both ways' * both}": _recurrent("LSTM", layers, both, False, True, 8)
    for layers, both in ((1, False), (2, True))
}

TINYNN = {f"tinynn {name}": build for name, build in (PRUNED | CASES | RECURRENT).items()}
