"""Cuts by Torch-Pruning at the same MACs as ours, with our BatchNorm step behind them. Needs `pip install -e .[bench]`.

It cuts in one step, all layers ranked together but in one row; the ratio is the least that meets the bound. BatchNorm
statistics are moved as in our rows, on as many samples. It cuts the zero-padded shortcuts of ResNets for CIFAR wrongly
(its model does not run), so there it is given the inner channels of the blocks alone.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import metaprune as mp
from metaprune.recover.bn_recalibrate import recalibrate_batchnorm
from networks import Subject

TAYLOR_SAMPLES, HESSIAN_SAMPLES, HALVINGS = 512, 128, 10
MAGNITUDE, TAYLOR, HESSIAN = (
    f"Torch-Pruning, {criterion}, BatchNorm"
    for criterion in ("magnitude (L2)", "Taylor (reads labels)", "Hessian (reads labels)")
)
EVEN = "Torch-Pruning, magnitude (L2), every layer alike, BatchNorm"
IMPORTANCES: dict[str, Any] = {
    MAGNITUDE: tp.importance.GroupMagnitudeImportance(p=2),
    EVEN: tp.importance.GroupMagnitudeImportance(p=2),
    TAYLOR: tp.importance.GroupTaylorImportance(),
    HESSIAN: tp.importance.GroupHessianImportance(),
}


def torch_pruned(subject: Subject, dense: nn.Module, data: mp.Data, label: str, share: float, seed: int) -> nn.Module:
    """Cut a copy of `dense` to at most `share` of its MACs."""
    bound, low, high, cut = share * macs(dense, subject), 0.0, 1.0, dense
    gradients = GRADIENTS[label](dense, data, subject, seed) if label in GRADIENTS else {}
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        tried = _cut(subject, dense, label, gradients, middle)
        if macs(tried, subject) <= bound:
            high, cut = middle, tried
        else:
            low = middle
    if any(isinstance(m, nn.BatchNorm2d) for m in dense.modules()):
        kept = _kept_channels(dense, cut)

        def to_size(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {
                n: t[kept[n.rpartition(".")[0]]] if n.endswith(("_mean", "_var")) else t for n, t in tensors.items()
            }

        size = subject.arguments.get("batch_size", 128)
        recalibrate_batchnorm(cut, data.train, rng=mp.Rng(seed), batch_size=size, dense=dense, to_size=to_size)
    return cut


def macs(model: nn.Module, subject: Subject) -> int:
    """MACs of a sample; on these networks, uncut, they are those of our cost model."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(subject.example[:1])
    return counter.get_total_flops() // 2


def _mean_gradients(model: nn.Module, data: mp.Data, subject: Subject, seed: int) -> dict[str, Tensor]:
    """Of the mean loss over samples, as its examples take them for Taylor."""
    size = subject.arguments.get("batch_size", TAYLOR_SAMPLES)
    batches = itertools.islice(data.train.batches(size, rng=mp.Rng(seed)), -(-TAYLOR_SAMPLES // size))
    found = [_gradients(model, images, labels) for images, labels in batches]
    return {name: torch.stack([g[name] for g in found]).mean(0) for name in found[0]}


def _squared_gradients(model: nn.Module, data: mp.Data, subject: Subject, seed: int) -> dict[str, Tensor]:
    """Mean square over samples, as its Hessian is meant; `accumulate_grad` of 1.6.1 keeps the last sample alone."""
    images, labels = next(iter(data.train.batches(HESSIAN_SAMPLES, rng=mp.Rng(seed))))
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for image, label in zip(images, labels, strict=True):
        for name, gradient in _gradients(model, image[None], label[None]).items():
            total[name] += gradient.square() / len(labels)
    return total


def _gradients(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    loss = nn.functional.cross_entropy(model(images), labels)
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


GRADIENTS = {TAYLOR: _mean_gradients, HESSIAN: _squared_gradients}


def _cut(subject: Subject, dense: nn.Module, label: str, gradients: Mapping[str, Tensor], ratio: float) -> nn.Module:
    model = copy.deepcopy(dense)
    for name, parameter in model.named_parameters():
        parameter.grad = gradients[name].clone() if gradients else None
    layers = dict(model.named_modules())
    heads = [layers[name] for name in subject.heads]
    ignored = heads or [[m for m in layers.values() if isinstance(m, nn.Linear)][-1]]
    if "resnet" in subject.model:
        ignored += [m for n, m in layers.items() if n == "conv1" or n.endswith("conv2")]
    pruner = tp.pruner.BasePruner(
        model,
        subject.example[:1],
        importance=IMPORTANCES[label],
        pruning_ratio=ratio,
        global_pruning=label != EVEN,
        ignored_layers=ignored,
        num_heads={m.qkv: m.num_heads for m in layers.values() if hasattr(m, "qkv")},
        round_to=subject.arguments.get("round_to"),
    )
    pruner.step()
    for module in layers.values():
        if hasattr(module, "qkv"):
            module.head_dim = module.qkv.out_features // (3 * module.num_heads)
    return model


def _kept_channels(dense: nn.Module, cut: nn.Module) -> dict[str, Tensor]:
    """Which channels each BatchNorm kept, by its path; known by its tensors (those alike in all are one)."""
    before = {n: m for n, m in dense.named_modules() if isinstance(m, nn.BatchNorm2d)}
    kept = {}
    for name, norm in cut.named_modules():
        if name in before:
            left, whole = (torch.stack([m.running_mean, m.running_var, m.weight, m.bias]) for m in (norm, before[name]))
            same = (left[:, :, None] == whole[:, None]).all(0)
            assert same.any(1).all(), f"a channel of {name} is none of the dense network's"
            kept[name] = same.double().argmax(1)
    return kept
