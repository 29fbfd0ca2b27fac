"""What the sanity checks of tianyic/only_train_once prune, written anew and narrower."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from outside_spec import Builder, Built, Layer, chain, conv, draw, linear, norm, pooled, same, spec, torchvision_model
from torch import Tensor, nn

from metaprune.testing.networks import Lambda

IMAGE = (2, 3, 16, 16)


def _concat_1(m: Any, x: Tensor) -> Tensor:
    y = F.relu(m.norm1(m.conv1(x)))
    z = m.conv2(y)
    return m.tail(pooled(m.conv5(m.norm4(torch.cat([y, m.norm2(z) + m.norm3(z) + m.conv3(y)], 1)))))


def _shared(m: Any, x: Tensor) -> Tensor:
    y = F.relu(m.norm1(m.conv1(x)))
    mixed = m.norm2(m.conv2(y)) + m.norm3(m.conv2(y)) + m.conv2(y)
    return m.tail(pooled(m.conv5(m.norm4(torch.cat([y, mixed], 1)))))


def _concat_2(m: Any, x: Tensor) -> Tensor:
    y = F.relu(m.norm1(m.conv1(x)))
    z = m.conv2(y)
    mixed = m.norm2(z) + m.norm3(z) + m.conv3(y)
    wide = m.conv5(torch.cat([y, mixed], 1))
    return m.tail(pooled(m.norm4(torch.cat([m.conv6(torch.cat([wide, mixed], 1)), wide], 1))))


def _transposed_1(m: Any, x: Tensor) -> Tensor:
    y = m.conv1(x)
    a, b = F.leaky_relu(m.norm1(y)), F.leaky_relu(m.norm2(y))
    y = m.conv3(a) + m.conv4(F.leaky_relu(m.norm3(m.conv2(b))))
    y = F.leaky_relu(m.norm6(m.conv6(y)))
    return m.tail(pooled(m.conv10(m.norm4(m.conv8(y)) + m.norm5(m.conv9(y)))))


def _transposed_2(m: Any, x: Tensor) -> Tensor:
    y = m.conv1(x)
    a, b = F.leaky_relu(m.norm1(y)), F.leaky_relu(m.norm2(y))
    y = torch.cat([m.conv3(a), m.conv4(F.leaky_relu(m.norm3(m.conv2(b))))], 1)
    y = F.leaky_relu(m.norm6(y))
    y = F.leaky_relu(torch.cat([m.norm4(m.conv5(y)), m.norm5(m.conv6(y))], 1))
    y = F.leaky_relu(m.conv7(y))
    return m.tail(pooled(F.leaky_relu(m.conv8(y)) + F.leaky_relu(m.conv9(y))))


def _weights_in_a_loop(m: Any, x: Tensor) -> Tensor:
    y = m.conv1(x)
    skip = m.conv2(y)
    for _ in range(4):
        y = torch.cat([m.conv4(m.conv3(y)), skip], 1)
    return m.conv5(y)


def _instance(width: int) -> Layer:
    return partial(nn.InstanceNorm2d, width, affine=True)


def _up(a: int, b: int, kernel: int = 3, **options: Any) -> Layer:
    return partial(nn.ConvTranspose2d, a, b, kernel, padding=1, **options)


def _tail(width: int) -> Layer:
    return chain(linear(width, 32), linear(32, 10))


def _downsampled(m: Any, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Two images and two codes; half of the bottleneck is an output."""
    skips = [F.leaky_relu(m.down[0](torch.cat([a, b], 1)))]
    for block in m.down[1:]:
        skips.append(F.leaky_relu(block(skips[-1])))
    y = m.middle(torch.cat([d, skips.pop(), c], 1))
    y, code = y.split((m.width, y.shape[1] - m.width), 1)
    for block in m.up[:-1]:
        y = torch.cat([block(y), skips.pop()], 1)
    return m.tail(pooled(m.last(m.up[-1](y)))), code


def _group_conv() -> Built:
    def depthwise(a: int, b: int, kernel: int = 3, stride: int = 2) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(a, a, kernel, stride, kernel // 2, groups=a),
            nn.Conv2d(a, b, 1),
            nn.InstanceNorm2d(b, affine=True),
        )

    def upward(a: int, b: int) -> nn.Sequential:
        return nn.Sequential(_up(a, b, stride=2, output_padding=1)(), nn.InstanceNorm2d(b, affine=True))

    widths = (12, 24, 48, 96, 96)
    down = [depthwise(a, b, 5 if a == 6 else 3) for a, b in zip((6, *widths), widths, strict=False)]
    middle = nn.Sequential(nn.Conv2d(208, 208, 3, padding=1, groups=208), nn.Conv2d(208, 384, 1))
    up = [upward(96, 96), upward(192, 48), upward(96, 24), upward(48, 12), upward(24, 12)]
    model = Lambda(
        _downsampled, down=nn.ModuleList(down), middle=middle, up=nn.ModuleList(up), width=96,
        last=nn.Conv2d(12, 24, 5, padding=2), tail=_tail(24)(),
    )  # fmt: skip
    return model, draw((1, 3, 64, 64), (1, 3, 64, 64), (1, 96, 2, 2), (1, 16, 2, 2)), {}


def _spade(spectral: bool) -> Built:
    """A list of images in, an encoder of five residual blocks, a decoder of three."""
    wrap = nn.utils.parametrizations.spectral_norm if spectral else lambda layer: layer

    def block(a: int, b: int, transposed: bool) -> nn.Module:
        make = _up(b, b, stride=2, output_padding=1) if transposed else conv(b, b, 3, stride=2, padding=1)
        short = _up(a, b, stride=2, output_padding=1) if transposed else conv(a, b, 3, stride=2, padding=1)
        return Lambda(
            lambda m, x: (
                m.short(F.leaky_relu(m.norm_s(x)))
                + m.second(F.leaky_relu(m.norm_1(m.first(F.leaky_relu(m.norm_0(x))))))
            ),
            first=wrap(same(a, b)()), second=wrap(make()), short=wrap(short()), norm_0=nn.BatchNorm2d(a),
            norm_1=nn.BatchNorm2d(b), norm_s=nn.BatchNorm2d(a),
        )  # fmt: skip

    def forward(m: Any, images: list[Tensor]) -> Tensor:
        skips = [m.stem(torch.cat(images, 1))]
        for encode in m.encoder:
            skips.append(encode(skips[-1]))
        y = skips.pop()
        for decode in m.decoder:
            y = torch.cat([decode(y), skips.pop()], 1)
        return m.last(y)

    widths = (8, 16, 32, 64, 64, 64)
    encoder = [block(a, b, False) for a, b in pairwise(widths)]
    decoder = [block(64, 64, True), block(128, 64, True), block(128, 32, True)]
    model = Lambda(
        forward, stem=nn.Conv2d(13, 8, 7, padding=3), encoder=nn.ModuleList(encoder), decoder=nn.ModuleList(decoder),
        last=nn.Conv2d(64, 64, 3, padding=1),
    )  # fmt: skip
    return model, (list(draw((1, 3, 64, 64), (1, 4, 64, 64), (1, 6, 64, 64))),), {}


def _carn() -> Built:
    def cascade(make: Layer, width: int) -> nn.Module:
        def forward(m: Any, x: Tensor) -> Tensor:
            kept = out = x
            for residual, fuse in zip(m.blocks, m.fuse, strict=True):
                kept = torch.cat([kept, residual(out)], 1)
                out = fuse(kept)
            return out

        fuse = [nn.Sequential(nn.Conv2d(width * i, width, 1), nn.ReLU()) for i in (2, 3, 4)]
        return Lambda(forward, blocks=nn.ModuleList(make() for _ in range(3)), fuse=nn.ModuleList(fuse))

    def residual() -> nn.Module:
        return Lambda(lambda m, x: F.relu(m.body(x) + x), body=chain(same(24, 24), nn.ReLU, same(24, 24))())

    upsample = chain(
        same(24, 96), nn.ReLU, partial(nn.PixelShuffle, 2), same(24, 96), nn.ReLU, partial(nn.PixelShuffle, 2)
    )
    model = Lambda(
        lambda m, x, scale: m.add(m.exit(m.up(m.body(m.entry(m.sub(x)))))),
        sub=nn.Conv2d(3, 3, 1), entry=same(3, 24)(), body=cascade(lambda: cascade(residual, 24), 24), up=upsample(),
        exit=same(24, 3)(), add=nn.Conv2d(3, 3, 1),
    )  # fmt: skip
    return model, (*draw((1, 3, 16, 16)), 4), {}


CONVS = {"conv1": same(3, 16), "conv2": same(16, 32), "conv3": same(16, 32), "conv5": same(48, 64)}
NORMS = {"norm1": norm(16), "norm2": norm(32), "norm3": norm(32)}
INSTANCES = {"norm1": _instance(16), "norm2": _instance(16), "norm3": _instance(32), "norm4": _instance(64)}
STEPS = (3, 16, 32, 64, 128)
_FOUND: dict[str, Builder] = {
    "DemoNetGroupConvCase1": _group_conv,
    "DemoNetConcatCase1": spec(_concat_1, IMAGE, norm4=norm(48), tail=_tail(64), **CONVS, **NORMS),
    "DemoNetConcatCase2": spec(
        _concat_2, IMAGE, norm4=norm(192), conv6=same(96, 128), tail=_tail(192), **CONVS, **NORMS
    ),
    "DemoNetConvtransposeInCase1": spec(
        _transposed_1, IMAGE, conv1=same(3, 16), conv2=same(16, 32), conv3=same(16, 64), conv4=same(32, 64),
        conv6=_up(64, 128), norm6=_instance(128), conv8=same(128, 64), conv9=same(128, 64), conv10=same(64, 64),
        norm5=_instance(64), tail=_tail(64), **INSTANCES,
    ),
    "DemoNetConvtransposeInCase2": spec(
        _transposed_2, IMAGE, conv1=same(3, 16), conv2=same(16, 32), conv3=same(16, 64), conv4=same(32, 64),
        norm6=_instance(128), conv5=same(128, 64), conv6=_up(128, 64), conv7=_up(128, 64), conv8=same(64, 96),
        conv9=_up(64, 96), norm5=_instance(64), tail=_tail(96), **INSTANCES,
    ),
    "DemoNetInstanceNorm2DCase3": spec(
        lambda m, x: m.tail(pooled(m.net(x))), IMAGE, tail=_tail(128),
        net=chain(*(f for a, b in pairwise(STEPS) for f in (same(a, b), _instance(b), nn.LeakyReLU))),
    ),
    "DemoNetInstanceNorm2DCase4": spec(
        lambda m, x: m.tail(pooled(m.net(x))), IMAGE, tail=_tail(128),
        net=chain(*(f for a, b in pairwise(STEPS) for f in (same(a, b), _instance(b), partial(nn.PReLU, b)))),
    ),
    "DemoNetWeightShareCase1": spec(
        _shared, IMAGE, conv1=same(3, 16), conv2=same(16, 32), conv5=same(48, 64), norm4=norm(48), tail=_tail(64),
        **NORMS,
    ),
    "DemoNetWeightShareCase2": spec(
        _weights_in_a_loop, (1, 3, 16, 16), conv1=same(3, 80), conv2=same(80, 40), conv3=same(80, 96),
        conv4=conv(96, 40, 1), conv5=same(80, 24),
    ),
    "densenet121": partial(torchvision_model, "densenet121", 64),
    "resnet18_cifar10": partial(torchvision_model, "resnet18", 32),
    "convnext_tiny": partial(torchvision_model, "convnext_tiny", 64),
    "CarnNet": _carn,
    "DemonetBatchnormPruning": partial(_spade, False),
    "DemonetBatchnormPruning spectral": partial(_spade, True),
}  # fmt: skip

OTO = {f"oto {name}": build for name, build in _FOUND.items()}
