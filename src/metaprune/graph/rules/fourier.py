"""Fourier transforms and complex numbers: transformed dimensions stay whole, channels pass."""

from __future__ import annotations

from metaprune.graph.call import Call, Labels
from metaprune.graph.rules.registry import rule

ONE = [f"fft_{kind}" for kind in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft")]


@rule(*ONE, *[f"{name}2" for name in ONE], *[f"{name}n" for name in ONE], "fft_fftshift", "fft_ifftshift")
def transform(call: Call) -> Labels:
    labels = call.labels(call["self"])
    dim = call["dim"]
    dims = list(range(len(labels))) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    if dim is None and call["s"] is not None:  # sizes without dimensions are those of the last ones
        dims = dims[-len(call["s"]) :]
    for d in dims:
        call.lock(labels[d], "transformed")
        labels[d] = None
    return labels


@rule("view_as_complex")
def view_as_complex(call: Call) -> Labels:
    """[.., 2] -> [..]."""
    labels = call.labels(call["self"])
    call.lock(labels[-1], "real and imaginary part")
    return labels[:-1]


@rule("view_as_real")
def view_as_real(call: Call) -> Labels:
    """[..] -> [.., 2]."""
    return [*call.labels(call["self"]), None]
