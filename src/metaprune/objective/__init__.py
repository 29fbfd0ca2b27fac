"""What a network is trained for and judged by. `create_objective` makes one from a name, a table or functions."""

from metaprune.objective.base import Metric, Objective, logits_of, signed
from metaprune.objective.classification import Classification, MultiLabel
from metaprune.objective.dense import Regression, Segmentation
from metaprune.objective.functions import FunctionObjective
from metaprune.objective.match_outputs import MatchOutputs, TeacherSplit
from metaprune.objective.own_loss import OwnLoss
from metaprune.objective.registry import OBJECTIVES, create_objective, describe_objective
from metaprune.objective.split import Split
from metaprune.objective.tokens import NextToken, TokenClassification

__all__ = [
    "OBJECTIVES",
    "Classification",
    "FunctionObjective",
    "MatchOutputs",
    "Metric",
    "MultiLabel",
    "NextToken",
    "Objective",
    "OwnLoss",
    "Regression",
    "Segmentation",
    "Split",
    "TeacherSplit",
    "TokenClassification",
    "create_objective",
    "describe_objective",
    "logits_of",
    "signed",
]
