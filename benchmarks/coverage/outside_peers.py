"""What the tests of open-mmlab/mmrazor and microsoft/nni prune, written anew."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from outside_spec import Builder, Built, Layer, chain, conv, draw, linear, norm, pooled, same, spec, torchvision_model
from torch import Tensor, nn

from metaprune.testing.networks import Lambda

IMAGE = (2, 3, 16, 16)


def _head(forward: Any, width: int, *shapes: tuple[int, ...], **layers: Layer) -> Builder:
    """A network for classes: features, pooled, and a linear layer."""
    return spec(lambda m, x: m.fc(pooled(forward(m, x))), *(shapes or (IMAGE,)), fc=linear(width, 100), **layers)


def _branching(x: Tensor) -> Tensor:
    return x * 2 if x.sum() > 0 else x * -2


def _untraceable(m: Any, x: Tensor) -> Tensor:
    y = _branching(m.a(_branching(m.stem(x))))
    return m.d(_branching(m.c(m.b(y))))


def _attention(m: Any, x: Tensor) -> Tensor:
    y = m.stem(x)
    h, w = y.shape[-2:]
    y = y.flatten(2).transpose(1, 2)
    q, k, v = m.qkv(y).reshape(y.shape[0], y.shape[1], 3, 4, y.shape[2] // 4).permute(2, 0, 3, 1, 4).contiguous()
    mixed = q @ k.transpose(-1, -2) / math.sqrt(32 // 4) @ v
    y = y + m.proj(mixed.permute(0, 2, 1, 3).flatten(-2))
    return y.reshape(y.shape[0], h, w, -1).permute(0, 3, 1, 2)


def _many(first: str, names: str = "abcd") -> Any:
    return lambda m, x: getattr(m, first)(torch.cat([getattr(m, n)(x) for n in names], 1))


def _bound(m: Any, x: Tensor) -> Tensor:
    y = m.a(x) + m.b(x)
    return y + m.c(y)


def _crossed(m: Any, x: Tensor) -> Tensor:
    y = m.a(x) * m.b(x)
    return m.c(y) + m.d(y)


def _inception(width: int) -> Layer:
    layers = {name: same(width, 32) for name in "abcd"}
    return lambda: Lambda(
        lambda m, x: torch.cat([m.a(x), m.b(x), m.c(x), m.d(x)], 1), **{n: make() for n, make in layers.items()}
    )


MMRAZOR: dict[str, Builder] = {
    "ConvAttnModel": _head(
        lambda m, x: (lambda y: m.b(y * torch.sigmoid(F.adaptive_avg_pool2d(y, 1))))(m.a(x)),
        16, a=same(3, 8), b=same(8, 16),
    ),
    "MultiConcatModel": _head(
        lambda m, x: torch.cat([m.c(torch.cat([m.a(x), m.b(x)], 1)), m.d(x)], 1),
        16, a=conv(3, 8, 1), b=conv(3, 8, 1), c=conv(16, 8, 1), d=conv(3, 8, 1),
    ),
    "MultiConcatModel2": _head(
        lambda m, x: m.d(torch.cat([torch.cat([m.a(x), m.b(x)], 1), m.c(x)], 1)),
        8, a=conv(3, 8, 1), b=conv(3, 8, 1), c=conv(3, 8, 1), d=conv(24, 8, 1),
    ),
    "ConcatModel": _head(
        _many("c", "ab"), 8, a=chain(conv(3, 8, 1), norm(8)), b=chain(conv(3, 8, 1), norm(8)), c=conv(16, 8, 1)
    ),
    "ResBlock": _head(
        lambda m, x: (lambda y: m.c(m.b(y) + y))(m.a(x)),
        8, a=chain(conv(3, 8, 1), norm(8)), b=chain(conv(8, 8, 1), norm(8)), c=conv(8, 8, 1),
    ),
    "SingleLineModel": _head(
        lambda m, x: m.net(x), 16, net=chain(same(3, 8), norm(8), nn.ReLU, same(8, 16), norm(16))
    ),
    "AddCatModel": _head(
        lambda m, x: m.e(torch.cat([m.a(x), m.b(x)], 1) + torch.cat([m.c(x), m.d(x)], 1)),
        16, a=conv(3, 2), b=conv(3, 6), c=conv(3, 4), d=conv(3, 4), e=conv(8, 16),
    ),
    "GroupWiseConvModel": _head(
        lambda m, x: m.net(x), 32, net=chain(same(3, 8), norm(8), same(8, 16, groups=2), norm(16), same(16, 32))
    ),
    "Xmodel": _head(_crossed, 16, a=same(3, 8), b=same(3, 8), c=same(8, 16), d=same(8, 16)),
    "MultipleUseModel": _head(
        lambda m, x: m.last(torch.cat([m.shared(f(x)) for f in (m.a, m.b, m.c, m.d)], 1)),
        32, shared=same(8, 16), last=same(64, 32), **{n: same(3, 8) for n in "abcd"},
    ),
    "Icep": _head(
        lambda m, x: m.op(m.b(m.a(x))), 32, (2, 3, 8, 8), a=_inception(3), b=_inception(128), op=conv(128, 32, 1)
    ),
    "ExpandLineModel": spec(
        lambda m, x: m.fc(m.net(x).reshape(x.shape[0], -1)), IMAGE, fc=linear(64, 100),
        net=chain(same(3, 8), norm(8), nn.ReLU, same(8, 16), norm(16), partial(nn.AdaptiveAvgPool2d, 2)),
    ),
    "MultiBindModel": _head(_bound, 8, a=same(3, 8), b=same(3, 8), c=same(8, 8)),
    "DwConvModel": _head(
        lambda m, x: m.net(x),
        48, net=chain(same(3, 48), norm(48), nn.ReLU, same(48, 48, groups=48), norm(48), nn.ReLU),
    ),
    "SelfAttention": _head(
        _attention, 32, (2, 3, 24, 24), stem=conv(3, 32, 4, stride=4, padding=4), qkv=linear(32, 96),
        proj=linear(32, 32),
    ),
    "LinearHeadForTest": spec(lambda m, x: m.fc(pooled(x)), (2, 11, 8, 8), fc=linear(11, 100)),
    "UntracableModel": _head(
        _untraceable, 16, stem=conv(3, 16, 3, stride=2), a=same(16, 8), b=same(8, 8), c=same(8, 16), d=same(16, 16)
    ),
    "UntracableBackBone": spec(
        _untraceable, IMAGE, stem=conv(3, 16, 3, stride=2), a=same(16, 8), b=same(8, 8), c=same(8, 16), d=same(16, 16)
    ),
    "UntracableModule": spec(lambda m, x: m.b(_branching(m.a(x))), IMAGE, a=same(3, 8), b=same(8, 8)),
    "UntracableModel bare": _head(lambda m, x: m.b(_branching(m.a(x))), 16, a=same(3, 16), b=same(16, 16)),
    "ModuleWithUntracableMethod": spec(lambda m, x: m.b(_branching(m.a(x))), IMAGE, a=same(3, 8), b=same(8, 8)),
}  # fmt: skip


def _lenet(m: Any, x: Tensor) -> Tensor:
    y = F.max_pool2d(F.relu(m.norm1(m.conv1(m.stem(x)))), 2)
    y = F.max_pool2d(F.relu(m.norm2(m.conv2(y))), 2)
    return m.tail(m.fc2(F.relu(m.fc1(y.reshape(y.shape[0], -1)))))


def _transposed(m: Any, x: Tensor) -> Tensor:
    y = F.relu(m.norm2(m.conv2(F.relu(m.norm1(m.conv1(x))))))
    return m.fc2(F.relu(m.fc1(y.flatten(1))))


def _parade(m: Any, x: Tensor) -> Tensor:
    """One operator after the other, as nni's own tests of its rules do."""
    x = x.sub(torch.ones_like(x)).add(torch.zeros_like(x)).contiguous(memory_format=torch.channels_last)
    x = F.interpolate(F.interpolate(x, (28, 28), mode="bilinear"), (28, 28))
    x = torch.sigmoid(torch.exp(F.adaptive_avg_pool2d(x, (28, 28)))).transpose(1, 2).transpose(1, 2)
    x = m.conv1(F.max_pool2d(F.avg_pool2d(x, 3, 1, padding=1), 3, 1, padding=1).to(torch.float32))
    x = F.max_pool2d(F.relu(x), 2) + F.max_pool2d(F.gelu(x), 2) + F.max_pool2d(F.leaky_relu(x), 2)
    x = m.conv2((x + 0.00001) * 1.00001)
    x = ((F.max_pool2d(F.silu(x), 2) - F.max_pool2d(torch.tanh(x), 2)) - 0.00001) / 1.00001
    x = x.permute(0, 2, 3, 1).permute(0, 2, 3, 1).permute(0, 2, 3, 1).unsqueeze(1).select(1, 0).unsqueeze(1)
    x = x.mean(1).unsqueeze(1).sum(1, dtype=torch.float32).unsqueeze(1).squeeze(1)
    x = x.flatten(1).reshape(x.shape[0], -1).view(x.shape[0], -1)
    x = torch.softmax(m.fc3(F.relu(m.fc2(F.relu(m.fc1(x))))), 1)
    x = torch.cat((x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]), 1)
    x = x.type_as(x).expand_as(x)
    return torch.constant_pad_nd(x @ x.t(), (1, 1, 1, 1), 3.14159)


def _pyramid() -> Built:
    import torchvision

    def forward(m: Any, x: Tensor) -> list[Tensor]:
        low = m.features[:7](x)
        middle = m.features[7:14](low)
        return [m.a(low), m.b(middle), m.c(m.features[14:18](middle))]

    features = torchvision.models.mobilenet_v2().features
    laterals = {n: nn.Conv2d(width, 48, 1, bias=False) for n, width in zip("abc", (32, 96, 320), strict=True)}
    return Lambda(forward, features=features, **laterals), draw((2, 3, 64, 64)), {}


def _scripted() -> Built:
    class Conditional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = True

        def forward(self, x: Tensor) -> Tensor:
            return x + 0.5 if self.first else x - 0.5

    model = Lambda(
        lambda m, x: m.b(m.act(m.a(x))), a=nn.Linear(8, 12), act=torch.jit.script(Conditional()), b=nn.Linear(12, 3)
    )
    return model, draw((2, 8)), {}


NNI: dict[str, Builder] = {
    "BigModel": spec(
        _lenet, (2, 1, 28, 28), stem=conv(1, 1, 1), conv1=conv(1, 20, 5), conv2=conv(20, 50, 5), norm1=norm(20),
        norm2=norm(50), fc1=linear(800, 100), fc2=linear(100, 10),
        tail=chain(linear(10, 10), partial(nn.BatchNorm1d, 10), nn.ReLU, linear(10, 2)),
    ),
    "TransposeModel groups=2": spec(
        _transposed, (2, 3, 8, 8), conv1=conv(3, 20, 5), norm1=norm(20), norm2=norm(50),
        conv2=partial(nn.ConvTranspose2d, 20, 50, 5, groups=2), fc1=linear(3200, 100), fc2=linear(100, 10),
    ),
    "TupleUnpack FPN": _pyramid,
    "TorchModel1 op parade": spec(
        _parade, (3, 1, 28, 28), conv1=conv(1, 6, 5), conv2=conv(6, 16, 5), fc1=linear(256, 120),
        fc2=linear(120, 84), fc3=linear(84, 10),
    ),
    "alexnet": partial(torchvision_model, "alexnet", 64),
    "squeezenet1_1": partial(torchvision_model, "squeezenet1_1", 64),
    "vgg11": partial(torchvision_model, "vgg11", 32),
    "resnet34": partial(torchvision_model, "resnet34", 64),
    "scripted activation": _scripted,
}  # fmt: skip


PEERS = {
    f"{tool} {name}": build for tool, found in {"mmrazor": MMRAZOR, "nni": NNI}.items() for name, build in found.items()
}
