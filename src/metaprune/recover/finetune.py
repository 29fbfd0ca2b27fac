"""Fine-tuning: train the pruned network on, from the weights it has."""

from __future__ import annotations

from metaprune.recover.task import RecoverTask
from metaprune.train.history import History


def finetune(task: RecoverTask) -> History:
    """Train `task.model` on the objective of its data with `task.config.train`."""
    return task.train()
