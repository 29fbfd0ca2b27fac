"""Networks that users' threads are about, written anew in a few lines. The name says which thread."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from outside_spec import Builder, Built, Layer, chain, conv, draw, linear, norm, pooled, same, spec
from torch import Tensor, nn

from metaprune.testing.networks import Lambda

IMAGE = (2, 3, 16, 16)


def _block(a: int, b: int, kernel: int = 3, **options: Any) -> Layer:
    return chain(same(a, b, kernel, bias=False, **options), norm(b), nn.ReLU)


# ------------------------------------------------------------------------------------------- VainF/Torch-Pruning


def _coordinates(m: Any, x: Tensor) -> Tensor:
    """Coordinate attention: gates along height and along width from one shared projection."""
    x = m.stem(x)
    h, w = x.shape[-2:]
    both = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)], 2)
    tall, wide = F.hardswish(m.squeeze(both)).split([h, w], 2)
    return m.fc(pooled(x * m.tall(tall).sigmoid() * m.wide(wide.transpose(2, 3)).sigmoid()))


def _cmunext() -> Built:
    def mixer(width: int, kernel: int) -> nn.Module:
        spatial = chain(same(width, width, kernel, groups=width), nn.GELU, norm(width))()
        channels = chain(conv(width, 4 * width, 1), nn.GELU, norm(4 * width), conv(4 * width, width, 1), norm(width))()
        return Lambda(lambda m, x: m.channels(x + m.spatial(x)), spatial=spatial, channels=channels)

    def forward(m: Any, x: Tensor) -> Tensor:
        a = m.one(m.stem(x))
        b = m.two(F.max_pool2d(a, 2))
        c = m.three(F.max_pool2d(b, 2))
        y = m.join2(torch.cat([b, F.interpolate(m.up2(c), scale_factor=2)], 1))
        return m.out(m.join1(torch.cat([a, F.interpolate(m.up1(y), scale_factor=2)], 1)))

    widths = {"one": (mixer(8, 3),), "two": (_block(8, 16)(), mixer(16, 7)), "three": (_block(16, 24)(), mixer(24, 7))}
    layers = {name: nn.Sequential(*found) for name, found in widths.items()}
    fuse = {"up2": _block(24, 16)(), "join2": _block(32, 16, groups=2)(), "up1": _block(16, 8)()}
    last = {"join1": _block(16, 8, groups=2)(), "out": nn.Conv2d(8, 2, 1)}
    return Lambda(forward, stem=_block(3, 8)(), **layers, **fuse, **last), draw(IMAGE), {}


def _implicit() -> Built:
    """YOLOR's learned offset and scale of a feature map."""
    model = Lambda(
        lambda m, x: m.scale * m.out(m.offset + m.stem(x)), stem=_block(3, 16)(), out=nn.Conv2d(16, 9, 1),
        offset=nn.Parameter(torch.randn(1, 16, 1, 1)), scale=nn.Parameter(torch.randn(1, 9, 1, 1)),
    )  # fmt: skip
    return model, draw(IMAGE), {}


def _wide_and_deep() -> Built:
    def forward(m: Any, codes: Tensor, numbers: Tensor) -> Tensor:
        deep = m.deep(torch.cat([*(e(codes[:, i]) for i, e in enumerate(m.embed)), numbers], 1))
        return m.out(torch.cat([deep, m.wide(numbers)], 1))

    embed = nn.ModuleList(nn.Embedding(10, 4) for _ in range(3))
    deep = chain(linear(18, 24), nn.ReLU, linear(24, 12), nn.ReLU)()
    model = Lambda(forward, embed=embed, deep=deep, wide=nn.Linear(6, 4), out=nn.Linear(16, 1))
    return model, (torch.arange(12).reshape(4, 3) % 10, *draw((4, 6))), {}


def _ista() -> Built:
    """Unrolled reconstruction: a data term by FFT, a learned transform, soft thresholding, its inverse."""

    def step(m: Any, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        residual = torch.fft.fft2(x) * mask - y
        x = x - m.rate * torch.fft.ifft2(residual * mask).real
        code = m.encode(m.lift(x))
        code = torch.sign(code) * F.relu(code.abs() - m.threshold)
        return x + m.lower(m.decode(code))

    def layer() -> nn.Module:
        twice = lambda: chain(same(12, 12), nn.ReLU, same(12, 12))()  # noqa: E731
        numbers = {"rate": nn.Parameter(torch.tensor(0.5)), "threshold": nn.Parameter(torch.tensor(0.01))}
        return Lambda(step, lift=same(1, 12)(), encode=twice(), decode=twice(), lower=same(12, 1)(), **numbers)

    def forward(m: Any, image: Tensor) -> Tensor:
        mask = (torch.arange(16) % 2).to(image.dtype).expand(16, 16)
        y = torch.fft.fft2(image) * mask
        x = torch.fft.ifft2(y).real
        for one in m.steps:
            x = one(x, y, mask)
        return x

    return Lambda(forward, steps=nn.ModuleList(layer() for _ in range(2))), draw((2, 1, 16, 16)), {}


def _crnn() -> Built:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.features(x).mean(2).permute(2, 0, 1)  # [width, batch, channels]
        return m.fc(m.second(m.first(y)[0])[0])

    features = chain(_block(1, 16), partial(nn.MaxPool2d, 2), _block(16, 32), partial(nn.MaxPool2d, (2, 1)))()
    first, second = nn.LSTM(32, 20, bidirectional=True), nn.LSTM(40, 20, bidirectional=True)
    return (
        Lambda(forward, features=features, first=first, second=second, fc=nn.Linear(40, 11)),
        draw((2, 1, 16, 24)),
        {},
    )


def _states_by_hand(m: Any, x: Tensor) -> Tensor:
    zeros = torch.zeros(1, x.size(0), 16)
    return m.fc(m.rnn(m.stem(x), (zeros, torch.zeros_like(zeros)))[0][:, -1])


def _dark(m: Any, x: Tensor) -> Tensor:
    """The U-Net that brightens raw images: packed input, pixel shuffle at the end."""
    a = m.a(x)
    b = m.b(F.max_pool2d(a, 2))
    c = m.c(F.max_pool2d(b, 2))
    y = m.d(torch.cat([m.up2(c), b], 1))
    return F.pixel_shuffle(m.out(m.e(torch.cat([m.up1(y), a], 1))), 2)


def _edsr() -> Built:
    def residual() -> nn.Module:
        return Lambda(lambda m, x: x + 0.1 * m.body(x), body=chain(same(12, 12), nn.ReLU, same(12, 12))())

    up = chain(same(12, 48), partial(nn.PixelShuffle, 2), same(12, 48), partial(nn.PixelShuffle, 2), same(12, 3))
    body = nn.Sequential(*(residual() for _ in range(3)), same(12, 12)())
    model = Lambda(lambda m, x: m.up((lambda y: y + m.body(y))(m.head(x))), head=same(3, 12)(), body=body, up=up())
    return model, draw((1, 3, 12, 12)), {}


def _cbam(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x)
    gate = m.mlp(x.mean((2, 3))) + m.mlp(x.amax((2, 3)))
    x = x * gate.sigmoid()[:, :, None, None]
    both = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
    return m.fc(pooled(m.last(x * m.where(both).sigmoid())))


# ------------------------------------------------------------------------------------------- other threads


def _padded_shortcut(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x)
    return m.fc(pooled(F.relu(m.body(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)))))


def _fno() -> Built:
    """A Fourier layer: complex weights on the lowest modes, beside a pointwise convolution."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.lift(x)
        modes = torch.fft.rfft2(x)
        mixed = torch.zeros_like(modes)
        mixed[:, :, :4, :4] = torch.einsum("bixy,ioxy->boxy", modes[:, :, :4, :4], m.weight)
        return m.out(F.gelu(torch.fft.irfft2(mixed, s=x.shape[-2:]) + m.skip(x)))

    weight = nn.Parameter(torch.randn(12, 12, 4, 4, dtype=torch.cfloat) / 12)
    layers = {"lift": conv(2, 12, 1)(), "skip": conv(12, 12, 1)(), "out": conv(12, 1, 1)()}
    return Lambda(forward, weight=weight, **layers), draw((2, 2, 16, 16)), {}


def _pointnet() -> Built:
    def pointwise(*widths: int) -> nn.Module:
        return nn.Sequential(
            *(f for a, b in pairwise(widths) for f in (nn.Conv1d(a, b, 1), nn.BatchNorm1d(b), nn.ReLU()))
        )  # fmt: skip

    def align(m: Any, x: Tensor) -> Tensor:
        y = m.fc(m.points(x).max(2)[0]).reshape(-1, m.k, m.k)
        return torch.bmm(x.transpose(2, 1), y + torch.eye(m.k, dtype=y.dtype)).transpose(2, 1)

    def aligned(k: int) -> nn.Module:
        fc = chain(linear(48, 24), nn.ReLU, linear(24, k * k))()
        return Lambda(align, points=pointwise(k, 24, 48), fc=fc, k=k)

    def forward(m: Any, x: Tensor) -> Tensor:
        local = m.align2(m.one(m.align1(x)))
        whole = m.two(local).max(2, keepdim=True)[0].expand(-1, -1, x.shape[2])
        return m.out(torch.cat([local, whole], 1))

    out = nn.Sequential(pointwise(16 + 64, 32), nn.Conv1d(32, 5, 1))
    parts = {"align1": aligned(3), "one": pointwise(3, 16), "align2": aligned(16), "two": pointwise(16, 32, 64)}
    return Lambda(forward, out=out, **parts), draw((2, 3, 30)), {}


def _shared_head(m: Any, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """One head with GroupNorm for three levels of a pyramid."""
    a = m.a(x)
    b = m.b(a)
    levels = [m.side_a(a), m.side_b(b), m.side_c(m.c(b))]
    return [(m.scores(m.head(y)), m.boxes(m.head(y)).exp()) for y in levels]


def _osnet() -> Built:
    def light(width: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(width, width, 1, bias=False), *_block(width, width, groups=width)())

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.reduce(x)
        scales = [s(y) for s in m.scales]
        mixed = sum(s * m.gate(s.mean((2, 3), keepdim=True)) for s in scales)
        return F.relu(m.expand(mixed) + m.skip(x))

    def omni(a: int, b: int) -> nn.Module:
        scales = nn.ModuleList(nn.Sequential(*(light(b // 4) for _ in range(n + 1))) for n in range(3))
        gate = chain(conv(b // 4, 2, 1), nn.ReLU, conv(2, b // 4, 1), nn.Sigmoid)()
        ends = {"reduce": _block(a, b // 4, 1)(), "expand": chain(conv(b // 4, b, 1), norm(b))()}
        return Lambda(forward, scales=scales, gate=gate, skip=conv(a, b, 1)(), **ends)

    model = Lambda(
        lambda m, x: F.normalize(m.fc(pooled(m.two(m.one(m.stem(x)))))), stem=_block(3, 16)(), one=omni(16, 32),
        two=omni(32, 48), fc=nn.Linear(48, 20),
    )  # fmt: skip
    return model, draw((2, 3, 16, 8)), {}


def _product(m: Any, x: Tensor) -> Tensor:
    y = m.stem(x)
    return m.fc(pooled(y * y.mean((2, 3), keepdim=True)))


UP = partial(nn.ConvTranspose2d, kernel_size=2, stride=2)
THREADS: dict[str, Builder] = {
    "TP146 cat(x, x)": spec(
        lambda m, x: (lambda y: m.fc(pooled(m.b(torch.cat([y, y], 1)))))(m.a(x)),
        IMAGE, a=_block(3, 12), b=_block(24, 16), fc=linear(16, 5),
    ),
    "TP481 wide and deep": _wide_and_deep,
    "TP513 CMUNeXt": _cmunext,
    "TP125 fc-view-convT": spec(
        lambda m, x: m.up(F.relu(m.fc(x)).view(-1, 16, 4, 4)),
        (2, 10), fc=linear(10, 256), up=chain(partial(nn.ConvTranspose2d, 16, 8, 4, 2, 1), nn.ReLU, same(8, 3)),
    ),
    "TP451 conv1d": spec(
        lambda m, x: m.fc(m.net(x).mean(2)), (2, 6, 30), fc=linear(24, 4),
        net=chain(
            partial(nn.Conv1d, 6, 16, 5), partial(nn.BatchNorm1d, 16), nn.ReLU, partial(nn.MaxPool1d, 2),
            partial(nn.Conv1d, 16, 24, 3), nn.ReLU,
        ),
    ),
    "TP503 CoordAtt": spec(
        _coordinates, IMAGE, stem=_block(3, 24), squeeze=chain(conv(24, 8, 1), norm(8)), tall=conv(8, 24, 1),
        wide=conv(8, 24, 1), fc=linear(24, 5),
    ),
    "TP356 ImplicitA/M": _implicit,
    "TP167 ISTA-Net fft": _ista,
    "TP404 CRNN BiLSTM": _crnn,
    "TP404 LSTM hand states": spec(
        _states_by_hand, (2, 4, 5), stem=linear(5, 12), rnn=partial(nn.LSTM, 12, 16, batch_first=True),
        fc=linear(16, 3),
    ),
    "TP279 dark UNet": spec(
        _dark, (1, 4, 16, 16), a=chain(same(4, 8), nn.LeakyReLU), b=chain(same(8, 16), nn.LeakyReLU),
        c=chain(same(16, 32), nn.LeakyReLU), d=chain(same(32, 16), nn.LeakyReLU), e=chain(same(16, 8), nn.LeakyReLU),
        up2=partial(UP, 32, 16), up1=partial(UP, 16, 8), out=conv(8, 12, 1),
    ),
    "TP98 EDSR x4": _edsr,
    "TinyNN72 padded shortcut": spec(
        _padded_shortcut, IMAGE, stem=_block(3, 16), fc=linear(24, 5),
        body=chain(same(16, 24, stride=2), norm(24), nn.ReLU, same(24, 24), norm(24)),
    ),
    "TinyNN272 sum": spec(
        lambda m, x: m.fc(pooled(m.c(torch.stack([m.a(x), m.b(x)]).sum(0)))),
        IMAGE, a=_block(3, 12), b=_block(3, 12), c=_block(12, 16), fc=linear(16, 5),
    ),
    "users FNO": _fno,
    "users PointNet": _pointnet,
    "users CBAM": spec(
        _cbam, IMAGE, stem=_block(3, 24), mlp=chain(linear(24, 6), nn.ReLU, linear(6, 24)), where=same(2, 1, 7),
        last=_block(24, 16), fc=linear(16, 5),
    ),
    "users OSNet": _osnet,
    "mmrazor78 GN shared head": spec(
        _shared_head, IMAGE, a=_block(3, 16), b=_block(16, 24, stride=2), c=_block(24, 32, stride=2),
        side_a=conv(16, 16, 1), side_b=conv(24, 16, 1), side_c=conv(32, 16, 1), scores=same(16, 5), boxes=same(16, 4),
        head=chain(same(16, 16), partial(nn.GroupNorm, 4, 16), nn.ReLU, same(16, 16), partial(nn.GroupNorm, 4, 16)),
    ),
    "nni4540 mul": spec(_product, IMAGE, stem=_block(3, 24), fc=linear(24, 5)),
}  # fmt: skip
