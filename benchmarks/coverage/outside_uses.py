"""Kinds of networks that users bring: they sample, keep state, make their own weights, detect."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from outside_spec import Builder, Built, chain, conv, draw, linear, norm, pooled, same, spec, torchvision_model
from torch import Tensor, nn

from metaprune.testing.networks import Lambda

IMAGE = (2, 3, 16, 16)


def _conv_lstm(zeros: Any, m: Any, x: Tensor) -> Tensor:
    """Frames [batch, time, channels, height, width] through one recurrent cell of convolutions."""
    h, c = zeros(x), zeros(x)
    for frame in x.unbind(1):
        i, f, o, g = m.cell(torch.cat([frame, h], 1)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    return m.fc(pooled(h))


def _vae(all_of_it: bool, m: Any, x: Tensor) -> Any:
    y = m.encode(x)
    mean, log_variance = m.mean(y), m.log_variance(y)
    decoded = m.decode(mean + torch.randn_like(mean) * (0.5 * log_variance).exp())
    return (decoded, mean, log_variance) if all_of_it else decoded


def _siamese(m: Any, x: Tensor, y: Tensor) -> Tensor:
    a, b = (m.embed(pooled(m.net(i))) for i in (x, y))
    return m.out((a - b).abs())


def _lora() -> Built:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.base(x) + m.up(m.down(x)) * 2.0

    def adapted(a: int, b: int) -> nn.Module:
        return Lambda(forward, base=nn.Linear(a, b), down=nn.Linear(a, 4, bias=False), up=nn.Linear(4, b, bias=False))

    return nn.Sequential(adapted(8, 24), nn.ReLU(), adapted(24, 24), nn.ReLU(), adapted(24, 3)), draw((2, 8)), {}


class _Written(nn.Module):
    """Counts its calls and keeps a running mean of its hidden units, in buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        self.calls += 1
        self.mean.mul_(0.9).add_(0.1 * y.detach().mean(0))
        return self.b(y - self.mean)


class _KeptAttribute(nn.Module):
    """A plain attribute that is filled in the first call, as heads of detectors do."""

    grid = None

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if self.grid is None or self.grid.shape[-1] != y.shape[-1]:
            self.grid = torch.linspace(0, 1, y.shape[-1])
        return self.b(torch.relu(y + self.grid))


class _Helper(nn.Module):
    """A second head in train mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)
        self.head, self.helper = nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        y = torch.relu(self.a(x))
        z = self.head(pooled(torch.relu(self.b(y))))
        return (z, self.helper(pooled(y))) if self.training else z


def _spectrogram(m: Any, wave: Tensor) -> Tensor:
    window = torch.hann_window(16, dtype=wave.dtype)
    spectrum = torch.stft(wave, 16, 8, window=window, return_complex=True)  # [batch, 9, frames]
    mask = m.out(m.rnn(torch.relu(m.stem(spectrum.abs().transpose(1, 2))))[0]).sigmoid().transpose(1, 2)
    return torch.istft(spectrum * mask, 16, 8, window=window, length=wave.shape[1])


def _packed() -> Built:
    def forward(m: Any, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(m.stem(x), lengths, batch_first=True, enforce_sorted=False)
        _, (last, _) = m.rnn(packed)
        return m.fc(last[-1])

    model = Lambda(forward, stem=nn.Linear(5, 12), rnn=nn.LSTM(12, 16, batch_first=True), fc=nn.Linear(16, 3))
    return model, (*draw((3, 6, 5)), torch.tensor([6, 4, 2])), {}


def _hyper(m: Any, x: Tensor, code: Tensor) -> Tensor:
    """Weights of the second layer come from a code."""
    made = m.make(torch.relu(m.code(code))).reshape(4, 16)
    return F.linear(torch.relu(m.first(x)), made)


def _dynamic(m: Any, x: Tensor) -> Tensor:
    """CondConv: every sample has a kernel of its own, so that the batch counts as groups."""
    x = m.stem(x)
    n, c, h, w = x.shape
    share = m.route(pooled(x)).sigmoid()
    kernels = (share @ m.kernels.flatten(1)).reshape(-1, c, 3, 3)
    return m.fc(pooled(F.conv2d(x.reshape(1, n * c, h, w), kernels, padding=1, groups=n).reshape(n, -1, h, w)))


def _condconv() -> Built:
    layers = {"stem": same(3, 8)(), "route": nn.Linear(8, 3), "fc": nn.Linear(12, 4)}
    return Lambda(_dynamic, kernels=nn.Parameter(torch.randn(3, 12, 8, 3, 3) * 0.1), **layers), draw((2, 3, 8, 8)), {}


def _nested_norms(m: Any, x: Tensor) -> Tensor:
    """A skip joined and normed in other groups than each part."""
    a, b = m.a(x), m.b(x)
    return m.out(m.norm(torch.cat([a, b], 1))) + m.out_a(m.norm_a(a)) + m.out_b(m.norm_b(b))


def _clusters(m: Any, x: Tensor) -> Tensor:
    """Distances from learned centres."""
    return m.out(torch.exp(-torch.cdist(torch.relu(m.a(x)), m.centres)))


def _masked_rows(m: Any, x: Tensor, keep: Tensor) -> Tensor:
    return m.b(torch.relu(m.a(x))[keep])


def _edges(m: Any, x: Tensor, edges: Tensor) -> Tensor:
    """Graph convolution: messages gathered along edges and added up at their ends."""
    for layer in (m.a, m.b):
        y = layer(x)
        x = torch.relu(torch.zeros_like(y).index_add(0, edges[1], y[edges[0]]) + y)
    return m.out(x)


def _haar(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.b(F.conv2d(y, torch.full((8, 1, 2, 2), 0.25), stride=2, groups=8))


def _weight_normed(m: Any, x: Tensor) -> Tensor:
    return m.b(torch.tanh(m.a(x))).mean(2)


def _autocast(m: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = torch.relu(m.b(torch.relu(m.a(x))))
    return m.fc(pooled(y.float()))


def _warped(m: Any, x: Tensor) -> Tensor:
    """A spatial transformer."""
    grid = F.affine_grid(m.pose(pooled(x)).view(-1, 2, 3), x.shape, align_corners=False)
    return m.b(F.grid_sample(m.a(x), grid, align_corners=False))


def _with_parameter(forward: Any, shape: tuple[int, ...], name: str, values: Tensor, **layers: Any) -> Built:
    made = {n: layer() for n, layer in layers.items()}
    return Lambda(forward, **{name: nn.Parameter(values)}, **made), draw(shape), {}


def _rows() -> Built:
    return Lambda(_masked_rows, a=nn.Linear(6, 16), b=nn.Linear(16, 3)), (*draw((8, 6)), torch.arange(8) % 3 > 0), {}


def _graph() -> Built:
    layers = {"a": nn.Linear(6, 16), "b": nn.Linear(16, 16), "out": nn.Linear(16, 3)}
    return Lambda(_edges, **layers), (*draw((5, 6)), torch.tensor([[0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 3]])), {}


def _once(model: type[nn.Module], *shapes: tuple[int, ...]) -> Built:
    return model(), draw(*shapes), {}


def _weight_norm() -> Built:
    wrap = nn.utils.parametrizations.weight_norm
    return Lambda(_weight_normed, a=wrap(nn.Conv1d(4, 16, 3)), b=wrap(nn.Conv1d(16, 5, 3))), draw((2, 4, 12)), {}


CELL = {"cell": conv(3 + 8, 32, 3, padding=1), "fc": linear(8, 5)}
VAE = {"encode": chain(linear(8, 24), nn.ReLU), "mean": linear(24, 6), "log_variance": linear(24, 6)}
DECODER = {"decode": chain(linear(6, 24), nn.ReLU, linear(24, 8))}
USES: dict[str, Builder] = {
    "ConvLSTM torch.zeros": spec(
        partial(_conv_lstm, lambda x: torch.zeros(x.shape[0], 8, 8, 8)), (2, 3, 3, 8, 8), **CELL
    ),
    "ConvLSTM new_zeros": spec(
        partial(_conv_lstm, lambda x: x.new_zeros(x.shape[0], 8, 8, 8)), (2, 3, 3, 8, 8), **CELL
    ),
    "VAE three outputs": spec(partial(_vae, True), (2, 8), **VAE, **DECODER),
    "VAE reconstruction only": spec(partial(_vae, False), (2, 8), **VAE, **DECODER),
    "dropout always on": spec(
        lambda m, x: m.b(F.dropout(torch.relu(m.a(x)), 0.3, training=True)), (2, 8), a=linear(8, 24), b=linear(24, 3)
    ),
    "Siamese": spec(
        _siamese, IMAGE, IMAGE, net=chain(same(3, 16), norm(16), nn.ReLU, same(16, 24), nn.ReLU),
        embed=linear(24, 12), out=linear(12, 1),
    ),
    "LoRA": _lora,
    "buffers written in forward": partial(_once, _Written, (2, 6)),
    "attribute set in forward": partial(_once, _KeptAttribute, (2, 3, 8, 8)),
    "helper head in train mode": partial(_once, _Helper, (2, 3, 8, 8)),
    "STFT mask": spec(
        _spectrogram, (2, 64), stem=linear(9, 16), rnn=partial(nn.GRU, 16, 12, batch_first=True), out=linear(12, 9)
    ),
    "packed sequence": _packed,
    "hypernetwork": spec(_hyper, (2, 6), (1, 3), first=linear(6, 16), code=linear(3, 12), make=linear(12, 64)),
    "CondConv": _condconv,
    "nested GroupNorm": spec(
        _nested_norms, IMAGE, a=same(3, 16), b=same(3, 8), norm=partial(nn.GroupNorm, 4, 24),
        norm_a=partial(nn.GroupNorm, 4, 16), norm_b=partial(nn.GroupNorm, 4, 8), out=conv(24, 3, 1),
        out_a=conv(16, 3, 1), out_b=conv(8, 3, 1),
    ),
    "GroupNorm(4) then groups=8": spec(
        lambda m, x: m.c(m.b(m.norm(m.a(x)))), IMAGE, a=same(3, 16), norm=partial(nn.GroupNorm, 4, 16),
        b=same(16, 16, groups=8), c=conv(16, 3, 1),
    ),
    "cdist clusters": partial(
        _with_parameter, _clusters, (4, 6), "centres", torch.linspace(0, 1, 5 * 16).reshape(5, 16).sin(),
        a=linear(6, 16), out=linear(5, 3),
    ),
    "rows by a mask": _rows,
    "index_add messages": _graph,
    "fixed blur kernel": spec(_haar, (2, 3, 8, 8), a=same(3, 8), b=conv(8, 4, 1)),
    "weight_norm": _weight_norm,
    "autocast in forward": spec(_autocast, IMAGE, a=same(3, 16), b=same(16, 24), fc=linear(24, 5)),
    "metric head": spec(
        lambda m, x, y: F.cosine_similarity(m.net(x), m.net(y)), (4, 6), (4, 6),
        net=chain(linear(6, 24), nn.ReLU, linear(24, 16)),
    ),
    "bilinear head": spec(
        lambda m, x, y: m.pair(torch.relu(m.a(x)), torch.relu(m.b(y))), (4, 6), (4, 5), a=linear(6, 12),
        b=linear(5, 10), pair=partial(nn.Bilinear, 12, 10, 3),
    ),
    "channel order by index": spec(
        lambda m, x: m.b(torch.relu(m.a(x))[:, [7, 6, 5, 4, 3, 2, 1, 0]]), (2, 6), a=linear(6, 8), b=linear(8, 3)
    ),
    "LayerNorm without weights": spec(
        lambda m, x: m.b(m.norm(m.a(x))), (2, 6), a=linear(6, 16), b=linear(16, 3),
        norm=partial(nn.LayerNorm, 16, elementwise_affine=False),
    ),
    "attention cell by hand": spec(
        lambda m, x: m.out(m.cell(m.a(x), (torch.tanh(m.h(x)), torch.tanh(m.c(x))))[0]), (3, 6), a=linear(6, 10),
        h=linear(6, 14), c=linear(6, 14), cell=partial(nn.LSTMCell, 10, 14), out=linear(14, 3),
    ),
    "spatial transformer": spec(
        _warped, (2, 3, 8, 8), a=same(3, 12), pose=linear(3, 6), b=same(12, 4),
    ),
}  # fmt: skip


def _detector(name: str, parts: Any, size: int) -> Built:
    """Backbone and heads of a torchvision detector: what runs before boxes are selected."""
    import torchvision

    model = getattr(torchvision.models.detection, name)(weights=None, weights_backbone=None)
    backbone, head = parts(model)

    def forward(m: Any, x: Tensor) -> Any:
        return m.head(list(m.backbone(x).values()))

    return Lambda(forward, backbone=backbone, head=head), draw((2, 3, size, size)), {}


def _whole_detector(name: str) -> Built:
    import torchvision

    model = getattr(torchvision.models.detection, name)(weights=None, weights_backbone=None)
    return model, (list(draw((3, 64, 64), (3, 64, 64))),), {}


def _raft() -> Built:
    import torchvision

    return (
        torchvision.models.optical_flow.raft_small(),
        draw((1, 3, 128, 128), (1, 3, 128, 128)),
        {"num_flow_updates": 2},
    )


def _sync() -> Built:
    import torchvision

    return nn.SyncBatchNorm.convert_sync_batchnorm(torchvision.models.resnet18()), draw((2, 3, 64, 64)), {}


def _timm(name: str, size: int, **options: Any) -> Built:
    import timm

    return timm.create_model(name, **options), draw((2, 3, size, size)), {}


DETECTION: dict[str, Builder] = {
    "resnet18": partial(torchvision_model, "resnet18", 64),
    "retinanet backbone+head": partial(
        _detector, "retinanet_resnet50_fpn", lambda m: (m.backbone, m.head), 64
    ),
    "ssdlite backbone+head": partial(
        _detector, "ssdlite320_mobilenet_v3_large", lambda m: (m.backbone, m.head), 128
    ),
    "fasterrcnn backbone+rpn": partial(
        _detector, "fasterrcnn_mobilenet_v3_large_fpn", lambda m: (m.backbone, m.rpn.head), 64
    ),
    "ssdlite whole list": partial(_whole_detector, "ssdlite320_mobilenet_v3_large"),
    "retinanet whole list": partial(_whole_detector, "retinanet_resnet50_fpn"),
    "fasterrcnn whole list": partial(_whole_detector, "fasterrcnn_mobilenet_v3_large_fpn"),
    "raft_small": _raft,
    "resnet18 SyncBN": _sync,
    "timm hrnet multi-out": partial(_timm, "hrnet_w18_small", 64, features_only=True),
    "timm efficientnet edgetpu": partial(_timm, "efficientnet_es_pruned", 64),
}  # fmt: skip
