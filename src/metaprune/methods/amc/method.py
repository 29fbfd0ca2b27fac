"""Keep ratios by layer, by an optimiser that sees the quality right after the cut.

AMC (He et al., AMC: AutoML for Model Compression and Acceleration on Mobile Devices, ECCV 2018) chooses the ratios by
reinforcement learning (DDPG), keeps the budget by clipping its actions, and takes as reward the validation accuracy
right after channels are chosen and their readers are solved by least squares, without training. Here Optuna's
Tree-structured Parzen estimator stands in for DDPG. Ratios of a trial are r ** e of each group, with the r that meets
the budget, so that no trial is wasted. Channels go by magnitude; readers are solved in closed form, from one pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import torch

from metaprune.calibration.calibrate import calibrate
from metaprune.calibration.closed_form import ClosedForm
from metaprune.core.rng import Rng
from metaprune.data.loader_split import replayed
from metaprune.data.splits import at_most
from metaprune.methods.amc.config import AMCConfig
from metaprune.methods.criteria.magnitude import Magnitude
from metaprune.objective import signed
from metaprune.objective.batch import call_arguments
from metaprune.protocol.method import BaseMethod, PruneTask
from metaprune.train.evaluate import quality_on
from metaprune.values import Budget, Plan, Proposal, Trial

_EXPONENT = 2.0  # log2 of the exponent of a group's ratio lies within it


@dataclass(frozen=True, kw_only=True)
class AMC(AMCConfig, BaseMethod):
    """Searches the keep ratios of all groups at once; hands over the plan alone, for `compensate` or a recovery."""

    def propose(self, task: PruneTask, budget: Budget, rng: Rng) -> Proposal:
        """Raises DataError for too few samples, see `metaprune.calibrate`."""
        task.require_data(self.name)
        allocator = task.allocator(budget)
        if allocator.full_network_fits:
            return Proposal(Plan())
        judged, space = _Judge(task, self, rng), task.network.space
        scores = Magnitude(p=1).scores(task, Plan(), rng)
        plans: list[Plan] = []

        def objective(trial: optuna.Trial) -> float:
            exponents = [2 ** trial.suggest_float(g.name, -_EXPONENT, _EXPONENT) for g in space]
            plans.append(allocator.by_ratio(scores, np.array(exponents)))
            return judged(plans[-1])

        seed = int(rng.child("optimiser").numpy().integers(2**31))
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            study = optuna.create_study(
                direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True)
            )
            study.enqueue_trial({g.name: 0.0 for g in space})  # uniform widths
            study.optimize(objective, n_trials=self.trials)
        finally:
            optuna.logging.set_verbosity(verbosity)
        values = [float(t.value) for t in study.trials if t.value is not None]
        trials = tuple(Trial(tuple(p.widths(space).tolist()), {}, v) for p, v in zip(plans, values, strict=True))
        details: dict[str, Any] = {"scores": values, "best": study.best_trial.number}
        return Proposal(plans[study.best_trial.number], None, trials, {self.name: details})


class _Judge:
    """Quality of a plan on validation samples, with readers solved and BatchNorm statistics moved."""

    def __init__(self, task: PruneTask, method: AMCConfig, rng: Rng):
        data, self.network = task.require_data(method.name), task.network
        self.objective = data.require_objective()
        self._form = ClosedForm(task.network, calibrate(task.network, data.train, samples=method.calibration))
        split = at_most(data.val, method.samples)
        device = task.network.device
        with replayed(split, rng.child("validation")):
            self._validation = list(split.batches(task.batch_size, device=device))
        with replayed(data.train, rng.child("statistics")):
            first = next(iter(data.train.batches(task.batch_size, device=device, rng=rng.child("statistics"))))
        self._statistics = [call_arguments(first[0])]
        self._measured = task.network.at().calibrated(task.network.tensors, self._statistics)

    def __call__(self, plan: Plan) -> float:
        at = self.network.at(plan)
        with torch.no_grad():
            tensors = at.calibrated(self._form.tensors(plan), self._statistics, self._measured)
        quality = quality_on(
            lambda inputs: at.execute(*call_arguments(inputs), tensors=tensors), self._validation, self.objective
        )
        primary = self.objective.primary
        return signed(primary, quality.metrics.get(primary.name, quality["loss"]))
