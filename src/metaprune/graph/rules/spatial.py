"""Pooling, resizing and unfolding: channels pass, spatial dimensions stay."""

from __future__ import annotations

from metaprune.graph.call import Call, Labels
from metaprune.graph.labels import merge_labels
from metaprune.graph.rules.registry import rule

POOLS = [f"{kind}_pool{d}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max", "lp") for d in (1, 2, 3)]
RESIZES = [
    "upsample_linear1d",
    "upsample_bilinear2d",
    "_upsample_bilinear2d_aa",
    "upsample_bicubic2d",
    "upsample_trilinear3d",
]
RESIZES += ["_upsample_bicubic2d_aa", *(f"upsample_nearest{d}d" for d in (1, 2, 3))]
RESIZES += [f"_upsample_nearest_exact{d}d" for d in (1, 2, 3)]


def _spatial_rank(name: str) -> int:
    return next(d for d in (1, 2, 3) if f"{d}d" in name)


@rule(*POOLS, *RESIZES, "max_pool2d_with_indices", "max_pool3d_with_indices")
def channels_pass(call: Call) -> Labels | list[Labels | None]:
    first = call["self"] if call["self"] is not None else call["input"]
    labels = call.labels(first)
    rank = _spatial_rank(call.name)
    for label in labels[-rank:]:
        call.lock(label, "spatial dimension")
    out = [*labels[:-rank], *[None] * rank]
    return [list(out) for _ in call.out] if isinstance(call.out, (list, tuple)) else out


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def grid_sampler(call: Call) -> Labels:
    """input [N, C, *space], grid [N, *out, dimensions]: every channel is read at the same positions.

    N may hold more than samples: the heads of deformable attention.
    """
    labels, grid = call.labels(call["input"]), call.labels(call["grid"])
    call.equate(labels[0], grid[0])
    for label in (*labels[2:], *grid[1:]):
        call.lock(label, "spatial dimension")
    return [*labels[:2], *[None] * (len(labels) - 2)]


@rule("affine_grid_generator")
def affine_grid(call: Call) -> Labels:
    """theta [N, d, d + 1], a matrix per sample -> positions [N, *space, d]."""
    samples, *matrix = call.labels(call["theta"])
    for label in matrix:
        call.lock(label, "spatial dimension")
    return [samples, *[None] * (len(call.out_shape) - 1)]


@rule("rot90")
def rot90(call: Call) -> Labels:
    labels = call.labels(call["self"])
    for d in call["dims"]:
        call.lock(labels[d], "spatial dimension")
        labels[d] = None
    return labels


@rule("im2col")
def im2col(call: Call) -> Labels:
    """[N, C, H, W] -> [N, C * kernel, L]: every channel becomes one row per kernel entry."""
    labels = call.labels(call["self"])
    for label in labels[-2:]:
        call.lock(label, "spatial dimension")
    kernel = call["kernel_size"][0] * call["kernel_size"][1]
    return [*labels[:-3], merge_labels([(labels[-3], call.shape(call["self"])[-3]), (None, kernel)]), None]


@rule("col2im")
def col2im(call: Call) -> Labels:
    labels = call.labels(call["self"])
    kernel = call["kernel_size"][0] * call["kernel_size"][1]
    channels, entries = call.split(labels[-2], [call.shape(call["self"])[-2] // kernel, kernel])
    for label in (entries, labels[-1]):
        call.lock(label, "spatial dimension")
    return [*labels[:-2], channels, None, None]


@rule("unfold")
def unfold(call: Call) -> Labels:
    """Sliding windows along one dimension."""
    labels = call.labels(call["self"])
    dim = call["dimension"] % len(labels)
    call.lock(labels[dim], "sliding window")
    labels[dim] = None
    return [*labels, None]


@rule("pixel_shuffle")
def pixel_shuffle(call: Call) -> Labels:
    """[.., C * r * r, H, W] -> [.., C, H * r, W * r]."""
    labels, r = call.labels(call["self"]), call["upscale_factor"]
    for label in labels[-2:]:
        call.lock(label, "spatial dimension")
    channels, entries = call.split(labels[-3], [call.shape(call["self"])[-3] // (r * r), r * r])
    call.lock(entries, "becomes a spatial dimension")
    return [*labels[:-3], channels, None, None]


@rule("pixel_unshuffle")
def pixel_unshuffle(call: Call) -> Labels:
    labels, r = call.labels(call["self"]), call["downscale_factor"]
    for label in labels[-2:]:
        call.lock(label, "spatial dimension")
    return [*labels[:-3], merge_labels([(labels[-3], call.shape(call["self"])[-3]), (None, r * r)]), None, None]
