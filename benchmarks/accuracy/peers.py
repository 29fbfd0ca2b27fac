"""How good is ResNet-20 right after Torch-Pruning's cuts? At the same MACs, with our BatchNorm step behind them.

    python benchmarks/accuracy/peers.py --folder ../shared/data --out benchmarks/accuracy/resnet20_inner.json

Torch-Pruning cuts the zero-padded shortcuts of these networks wrongly (its model does not run). So every row here cuts
inner channels of the blocks alone, ours too. It ranks all layers together, in one step; the ratio is the least that
meets the budget. BatchNorm statistics are moved as in our rows, on as many samples. Needs `pip install -e .[bench]`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from typing import Any

import torch
import torch_pruning as tp
from run import L1, LEAST_SQUARES, add_rows, method, parser_of, row_of
from torch import Tensor, nn

import metaprune as mp
from metaprune.recover.bn_recalibrate import recalibrate_batchnorm
from metaprune.train.evaluate import evaluate

TAYLOR_IMAGES, HALVINGS = 512, 10
ONLY = {"only": ("*:hidden",)}
ACTIVATION = method("activation", allocate="sensitivity")
OURS: dict[str, dict[str, Any]] = {
    "magnitude (L1), BatchNorm": {**L1, "recover": "bn", **ONLY},
    "sensitivity (activation), least squares": {
        **method("activation", allocate="sensitivity"),
        **LEAST_SQUARES,
        **ONLY,
    },
}
PEERS = {
    "Torch-Pruning, magnitude (L2), BatchNorm": tp.importance.GroupMagnitudeImportance(p=2),
    "Torch-Pruning, Taylor (reads labels), BatchNorm": tp.importance.GroupTaylorImportance(),
}


def main() -> None:
    parser = parser_of(__doc__, seeds=1, budgets=["70%", "50%"])

    def row(model: nn.Module, data: mp.Data, budget: str, seed: int, label: str) -> dict[str, Any]:
        if label in OURS:
            return row_of(model, data, budget, seed, OURS[label])
        return peer_row(model, data, budget, seed, PEERS[label])

    add_rows(parser.parse_args(), [*OURS, *PEERS], row)


def peer_row(model: nn.Module, data: mp.Data, budget: str, seed: int, importance: Any) -> dict[str, Any]:
    """Figures of one prune by Torch-Pruning, and its CPU seconds with evaluations."""
    began = time.process_time()
    dense = model.eval()
    full, grads = macs(dense), gradients(dense, data, seed)
    bound, low, high, cut = full * float(budget.rstrip("%")) / 100, 0.0, 1.0, dense
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        tried = torch_pruned(dense, importance, grads, middle)
        if macs(tried) <= bound:
            high, cut = middle, tried
        else:
            low = middle
    kept = kept_channels(dense, cut)

    def to_size(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {n: t[kept[n.rpartition(".")[0]]] if n.endswith(("_mean", "_var")) else t for n, t in tensors.items()}

    recalibrate_batchnorm(cut, data.train, rng=mp.Rng(seed), dense=dense, to_size=to_size)
    figures = [evaluate(m, data.test, objective=data.objective)["accuracy"] for m in (dense, cut)]
    widths = [m.out_channels for m in cut.modules() if isinstance(m, nn.Conv2d)]
    spent = round(time.process_time() - began, 1)
    return {
        "accuracy": figures[1],
        "dense": figures[0],
        "macs": macs(cut),
        "full_macs": full,
        "ratio": high,
        "widths": widths,
        "cpu_s_with_evaluation": spent,
    }


def torch_pruned(model: nn.Module, importance: Any, grads: Mapping[str, Tensor], ratio: float) -> nn.Module:
    model = copy.deepcopy(model)
    for name, parameter in model.named_parameters():
        parameter.grad = grads[name].clone()
    streams = [m for n, m in model.named_modules() if n in ("conv1", "linear") or n.endswith("conv2")]
    pruner = tp.pruner.BasePruner(
        model,
        torch.zeros(1, 3, 32, 32),
        importance=importance,
        pruning_ratio=ratio,
        global_pruning=True,
        ignored_layers=streams,
    )
    pruner.step()
    return model


def gradients(model: nn.Module, data: mp.Data, seed: int) -> dict[str, Tensor]:
    """Of the mean loss over calibration images, as its examples take them for Taylor."""
    images, labels = next(iter(data.train.batches(TAYLOR_IMAGES, rng=mp.Rng(seed))))
    loss = nn.functional.cross_entropy(model(images), labels)
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def macs(model: nn.Module) -> int:
    return mp.trace(model, torch.zeros(2, 3, 32, 32)).cost().macs


def kept_channels(dense: nn.Module, cut: nn.Module) -> dict[str, Tensor]:
    """Which channels each BatchNorm kept, by its path; they are known by their running means."""
    before = {n: m for n, m in dense.named_modules() if isinstance(m, nn.BatchNorm2d)}
    kept = {}
    for name, norm in cut.named_modules():
        if name in before:
            same = norm.running_mean[:, None] == before[name].running_mean[None]
            assert (same.sum(1) == 1).all(), f"two channels of {name} have the same mean"
            kept[name] = same.double().argmax(1)
    return kept


if __name__ == "__main__":
    main()
