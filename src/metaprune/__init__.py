"""metaprune: a smaller PyTorch network under a hard budget, proved equal to its masked original.

The names here are the public interface; docs/stability.md says what that promises. They are bound on first use:
`import metaprune` does not import torch.
"""

from __future__ import annotations

import importlib
import random
from typing import TYPE_CHECKING, Any

from metaprune._version import __version__

_HOME = {
    "Calibration": "metaprune.calibration.calibrate",
    "calibrate": "metaprune.calibration.calibrate",
    "CollapseWarning": "metaprune.core.errors",
    "ConfigError": "metaprune.core.errors",
    "DataError": "metaprune.core.errors",
    "DamagedFileError": "metaprune.core.errors",
    "DataMissingError": "metaprune.core.errors",
    "InfeasibleBudgetError": "metaprune.core.errors",
    "InputsError": "metaprune.core.errors",
    "MetapruneError": "metaprune.core.errors",
    "MissingDependencyError": "metaprune.core.errors",
    "FixedBatchWarning": "metaprune.core.errors",
    "NoEffectWarning": "metaprune.core.errors",
    "NotAvailableError": "metaprune.core.errors",
    "PlanError": "metaprune.core.errors",
    "SearchError": "metaprune.core.errors",
    "SlowWidthsWarning": "metaprune.core.errors",
    "TrainingDivergedError": "metaprune.core.errors",
    "UncoveredOpWarning": "metaprune.core.errors",
    "UntraceableError": "metaprune.core.errors",
    "VacuousProofWarning": "metaprune.core.errors",
    "VerificationError": "metaprune.core.errors",
    "WeightsError": "metaprune.core.errors",
    "WriteError": "metaprune.core.errors",
    "Rng": "metaprune.core.rng",
    "CostMetric": "metaprune.cost.metrics",
    "register_cost_metric": "metaprune.cost.metrics",
    "Data": "metaprune.data",
    "Split": "metaprune.data",
    "as_data": "metaprune.data",
    "load_data": "metaprune.data",
    "load": "metaprune.export.archive",
    "rule": "metaprune.graph.rules",
    "LatencyTable": "metaprune.latency",
    "Network": "metaprune.network",
    "trace": "metaprune.tracing",
    "Classification": "metaprune.objective",
    "MatchOutputs": "metaprune.objective",
    "Metric": "metaprune.objective",
    "MultiLabel": "metaprune.objective",
    "NextToken": "metaprune.objective",
    "Objective": "metaprune.objective",
    "OwnLoss": "metaprune.objective",
    "Regression": "metaprune.objective",
    "Segmentation": "metaprune.objective",
    "TokenClassification": "metaprune.objective",
    "BaseMethod": "metaprune.protocol.method",
    "LearnedMethod": "metaprune.protocol.method",
    "Method": "metaprune.protocol.method",
    "PruneTask": "metaprune.protocol.method",
    "register": "metaprune.protocol.registry",
    "MethodSpec": "metaprune.protocol.spec",
    "RecoverConfig": "metaprune.recover.config",
    "compare": "metaprune.runs.compare",
    "headroom": "metaprune.runs.headroom",
    "RunConfig": "metaprune.runs.config",
    "fit": "metaprune.runs.fit",
    "Result": "metaprune.runs.result",
    "prune": "metaprune.runs.prune",
    "replay": "metaprune.runs.replay",
    "run": "metaprune.runs.run",
    "sensitivity": "metaprune.runs.sensitivity",
    "add_biases": "metaprune.surgery.biases",
    "Pruned": "metaprune.surgery.cut",
    "cut": "metaprune.surgery.cut",
    "TrainConfig": "metaprune.train.config",
    "PrunedVocabulary": "metaprune.vocabulary",
    "prune_vocabulary": "metaprune.vocabulary",
    "Budget": "metaprune.values",
    "Constraints": "metaprune.values",
    "Cost": "metaprune.values",
    "Plan": "metaprune.values",
    "Proposal": "metaprune.values",
}

if TYPE_CHECKING:
    from metaprune.calibration.calibrate import Calibration, calibrate
    from metaprune.core.errors import (
        CollapseWarning,
        ConfigError,
        DamagedFileError,
        DataError,
        DataMissingError,
        FixedBatchWarning,
        InfeasibleBudgetError,
        InputsError,
        MetapruneError,
        MissingDependencyError,
        NoEffectWarning,
        NotAvailableError,
        PlanError,
        SearchError,
        SlowWidthsWarning,
        TrainingDivergedError,
        UncoveredOpWarning,
        UntraceableError,
        VacuousProofWarning,
        VerificationError,
        WeightsError,
        WriteError,
    )
    from metaprune.core.rng import Rng
    from metaprune.cost.metrics import CostMetric, register_cost_metric
    from metaprune.data import Data, Split, as_data, load_data
    from metaprune.export.archive import load
    from metaprune.graph.rules import rule
    from metaprune.latency import LatencyTable
    from metaprune.network import Network
    from metaprune.objective import (
        Classification,
        MatchOutputs,
        Metric,
        MultiLabel,
        NextToken,
        Objective,
        OwnLoss,
        Regression,
        Segmentation,
        TokenClassification,
    )
    from metaprune.protocol.method import BaseMethod, LearnedMethod, Method, PruneTask
    from metaprune.protocol.registry import register
    from metaprune.protocol.spec import MethodSpec
    from metaprune.recover.config import RecoverConfig
    from metaprune.runs.compare import compare
    from metaprune.runs.config import RunConfig
    from metaprune.runs.fit import fit
    from metaprune.runs.headroom import headroom
    from metaprune.runs.prune import prune
    from metaprune.runs.replay import replay
    from metaprune.runs.result import Result
    from metaprune.runs.run import run
    from metaprune.runs.sensitivity import sensitivity
    from metaprune.surgery.biases import add_biases
    from metaprune.surgery.cut import Pruned, cut
    from metaprune.tracing import trace
    from metaprune.train.config import TrainConfig
    from metaprune.values import Budget, Constraints, Cost, Plan, Proposal
    from metaprune.vocabulary import PrunedVocabulary, prune_vocabulary

__all__ = [
    "BaseMethod",
    "Budget",
    "Calibration",
    "Classification",
    "CollapseWarning",
    "ConfigError",
    "Constraints",
    "Cost",
    "CostMetric",
    "DamagedFileError",
    "Data",
    "DataError",
    "DataMissingError",
    "FixedBatchWarning",
    "InfeasibleBudgetError",
    "InputsError",
    "LatencyTable",
    "LearnedMethod",
    "MatchOutputs",
    "MetapruneError",
    "Method",
    "MethodSpec",
    "Metric",
    "MissingDependencyError",
    "MultiLabel",
    "Network",
    "NextToken",
    "NoEffectWarning",
    "NotAvailableError",
    "Objective",
    "OwnLoss",
    "Plan",
    "PlanError",
    "Proposal",
    "PruneTask",
    "Pruned",
    "PrunedVocabulary",
    "RecoverConfig",
    "Regression",
    "Result",
    "Rng",
    "RunConfig",
    "SearchError",
    "Segmentation",
    "SlowWidthsWarning",
    "Split",
    "TokenClassification",
    "TrainConfig",
    "TrainingDivergedError",
    "UncoveredOpWarning",
    "UntraceableError",
    "VacuousProofWarning",
    "VerificationError",
    "WeightsError",
    "WriteError",
    "__version__",
    "add_biases",
    "as_data",
    "calibrate",
    "compare",
    "cut",
    "fit",
    "headroom",
    "load",
    "load_data",
    "prune",
    "prune_vocabulary",
    "register",
    "register_cost_metric",
    "replay",
    "rule",
    "run",
    "sensitivity",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        state = random.getstate()  # rich draws from it when it is imported, and the user's numbers are the user's
        try:
            return getattr(importlib.import_module(_HOME[name]), name)
        finally:
            random.setstate(state)
    if name == "hf":
        return importlib.import_module("metaprune.hf")
    raise AttributeError(f"module 'metaprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
