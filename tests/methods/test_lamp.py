"""LAMP by its formula, on a layer by hand."""

import numpy as np
import torch
from torch import nn

from metaprune.core.rng import Rng
from metaprune.methods import create_method
from metaprune.methods.criteria.lamp import adaptive
from metaprune.protocol.method import PruneTask
from metaprune.tracing import trace
from metaprune.values import Budget, Plan


def test_a_score_is_the_share_among_what_is_no_smaller():
    energies = np.array([4.0, 1.0, 3.0, 2.0])
    assert np.allclose(adaptive(energies, np.ones(4, dtype=bool)), [1, 1 / 10, 3 / 7, 2 / 9])
    dropped = np.array([True, False, True, True])
    assert np.allclose(adaptive(energies, dropped), [1, 0, 3 / 7, 2 / 9])
    assert np.allclose(adaptive(np.zeros(3), np.ones(3, dtype=bool)), 0)


def test_layers_of_any_scale_keep_their_largest_channels():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 2))
    with torch.no_grad():
        model[2].weight.mul_(100)
        model[4].weight.div_(100)
    task = PruneTask(trace(model, torch.zeros(2, 4)))
    assert all(np.isclose(scores.max(), 1) for scores in create_method("lamp").scores(task, Plan(), Rng(0)))
    widths = create_method("lamp").propose(task, Budget(params="40%"), Rng(0)).plan.widths(task.network.space)
    assert (widths > 2).all() and (widths < 12).all()
