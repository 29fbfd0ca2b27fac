"""Small networks, one per structure that the channel algebra has to understand; each runs in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaprune.core.rng import Rng


@dataclass(frozen=True)
class Toy:
    """A model in eval mode with inputs of batch two, built from a fixed seed."""

    model: nn.Module
    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


TOYS: dict[str, Callable[[], tuple]] = {}


def toy(name: str) -> Toy:
    """Build the toy network `name` (one of `TOYS`), perturbed so that no parameter is trivial."""
    from metaprune.testing.oracles import perturb

    with Rng(0).child("toy", name).torch_global():
        model, *rest = TOYS[name]()
        args, kwargs = (*rest, {})[:2] if rest else ((), {})
        return Toy(perturb(model).eval(), args, kwargs)


def _toy(build: Callable[[], tuple]) -> Callable[[], tuple]:
    TOYS[build.__name__.strip("_")] = build
    return build


class Lambda(nn.Module):
    """Submodules by name and a function of (self, *inputs)."""

    def __init__(self, function: Callable[..., Any], **modules: Any):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def _conv_bn(a: int, b: int, **options: Any) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False, **options), nn.BatchNorm2d(b), nn.ReLU())


def _image(size: int = 8) -> tuple[Tensor]:
    return (torch.randn(2, 3, size, size),)


class _Head(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


@_toy
def _residual() -> tuple:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.head(F.relu(x + m.b(m.a(x))))

    return Lambda(forward, stem=_conv_bn(3, 8), a=_conv_bn(8, 12), b=_conv_bn(12, 8), head=_Head(8)), _image()


@_toy
def _concat() -> tuple:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.head(m.mix(torch.cat([m.a(x), x, m.b(x)], 1)))

    return Lambda(
        forward, stem=_conv_bn(3, 6), a=_conv_bn(6, 8), b=_conv_bn(6, 4), mix=_conv_bn(18, 8), head=_Head(8)
    ), _image()


@_toy
def _split() -> tuple:
    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = torch.split(m.stem(x), [4, 8], dim=1)
        return m.head(torch.cat([m.b(b), m.a(a)], 1))

    return Lambda(forward, stem=_conv_bn(3, 12), a=_conv_bn(4, 6), b=_conv_bn(8, 10), head=_Head(16)), _image()


@_toy
def _grouped() -> tuple:
    return nn.Sequential(
        _conv_bn(3, 12), _conv_bn(12, 24, groups=4), _conv_bn(24, 24, groups=24), _conv_bn(24, 8), _Head(8)
    ), _image()


@_toy
def _flatten() -> tuple:
    body = nn.Sequential(
        _conv_bn(3, 6), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 16, 20), nn.ReLU(), nn.Linear(20, 5)
    )
    return body, _image()


@_toy
def _shuffle() -> tuple:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(m.stem(x))
        n, c, h, w = x.shape
        x = x.view(n, 3, c // 3, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        return m.head(m.b(x))

    return Lambda(
        forward, stem=_conv_bn(3, 12), a=_conv_bn(12, 12, groups=3), b=_conv_bn(12, 8), head=_Head(8)
    ), _image()


class _PackedAttention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads, self.head_dim, self.scale = heads, dim // heads, (dim // heads) ** -0.5
        self.norm, self.qkv, self.proj = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, n, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*qkv.unbind(0), scale=self.scale)
        return x + self.proj(y.transpose(1, 2).reshape(b, n, self.heads * self.head_dim))


@_toy
def _packed_qkv() -> tuple:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.block(m.embed(x))
        return m.head(m.norm(x + m.fc2(F.gelu(m.fc1(x))))[:, 0])

    return Lambda(
        forward,
        embed=nn.Linear(6, 12),
        block=_PackedAttention(12, 3),
        fc1=nn.Linear(12, 20),
        fc2=nn.Linear(20, 12),
        norm=nn.LayerNorm(12),
        head=nn.Linear(12, 5),
    ), (torch.randn(2, 7, 6),)


@_toy
def _written_out_attention() -> tuple:
    """Separate q, k, v; the default scale is computed from the width."""

    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (2, 6)).transpose(1, 2) for p in (m.q, m.k, m.v))
        attention = (q @ k.transpose(-2, -1) / 6**0.5).softmax(-1)
        return m.out((attention @ v).transpose(1, 2).flatten(2))

    return Lambda(forward, q=nn.Linear(6, 12), k=nn.Linear(6, 12), v=nn.Linear(6, 12), out=nn.Linear(12, 4)), (
        torch.randn(2, 5, 6),
    )


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc, self.norm = nn.Embedding(11, 8), nn.Linear(8, 16), nn.LayerNorm(8)
        self.back, self.head = nn.Linear(16, 8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.head(self.norm(x + self.back(self.fc(x).relu())))


@_toy
def _tied() -> tuple:
    return _Tied(), (torch.randint(0, 11, (2, 5)),)


class _KeywordInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 10), nn.Linear(4, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor, *, extra: dict[str, Tensor], gain: float = 1.0) -> dict[str, Any]:
        h = (self.a(x) + self.b(extra["y"])).relu() * gain
        return {"logits": self.out(h), "aux": (h.mean(1), None)}


@_toy
def _keyword_inputs() -> tuple:
    return _KeywordInputs(), (torch.randn(2, 6),), {"extra": {"y": torch.randn(2, 4)}}


@_toy
def _pad_shortcut() -> tuple:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.head(F.relu(m.a(x) + F.pad(x, (0, 0, 0, 0, 1, 3))))

    return Lambda(forward, stem=_conv_bn(3, 8), a=_conv_bn(8, 12), head=_Head(12)), _image()


@_toy
def _group_norm() -> tuple:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3),
        nn.GroupNorm(3, 12),
        nn.SiLU(),
        nn.Conv2d(12, 8, 3),
        nn.GroupNorm(1, 8),
        nn.ReLU(),
        _Head(8),
    ), _image()


@_toy
def _spectral_norm() -> tuple:
    """The norm of a weight is taken with vectors that shrink with it: parameter meets parameter."""
    middle = nn.utils.spectral_norm(nn.Conv2d(8, 12, 3))
    return nn.Sequential(_conv_bn(3, 8), middle, nn.ReLU(), _Head(12)), _image()


@_toy
def _squeeze_excite() -> tuple:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        gate = m.up(m.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return m.head(m.out(x * gate))

    return Lambda(
        forward,
        stem=_conv_bn(3, 12),
        down=nn.Conv2d(12, 4, 1),
        up=nn.Conv2d(4, 12, 1),
        out=_conv_bn(12, 8),
        head=_Head(8),
    ), _image()


@_toy
def _upsampled() -> tuple:
    """Encoder and decoder: transposed convolution, pixel shuffle, skip connection."""

    def forward(m: Any, x: Tensor) -> Tensor:
        low = m.a(x)
        up = m.up(m.b(low))
        fine = F.pixel_shuffle(m.c(low), 2)
        return m.head(torch.cat([up, fine], 1))

    return Lambda(
        forward,
        a=_conv_bn(3, 6),
        b=_conv_bn(6, 8),
        up=nn.ConvTranspose2d(8, 6, 2, stride=2),
        c=_conv_bn(6, 16),
        head=_Head(10),
    ), _image()


@_toy
def _gated() -> tuple:
    """Halves of one layer multiply each other; RMSNorm; dropout of both kinds."""
    mods = {"a": nn.Linear(6, 16), "norm": nn.RMSNorm(8), "b": nn.Linear(8, 4)}
    drop = {"d": nn.Dropout(0.3), "e": nn.Dropout(0.3, inplace=True)}

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.b(m.e(m.norm(m.d(F.glu(m.a(x), -1)))))

    return Lambda(forward, **mods, **drop), (torch.randn(2, 6),)


@_toy
def _unused_parameters() -> tuple:
    mods = {"a": nn.Linear(6, 8), "b": nn.Linear(8, 4), "never": nn.Linear(6, 8)}
    return Lambda(lambda m, x: m.b(m.a(x).relu()), **mods), (torch.randn(2, 6),)


@_toy
def _multihead() -> tuple:
    """torch.nn's own transformer layer: its forward checks widths, so that only the graph form is possible."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.Sequential(nn.Linear(6, 8), layer, nn.Linear(8, 3)), (torch.randn(2, 4, 6),)
