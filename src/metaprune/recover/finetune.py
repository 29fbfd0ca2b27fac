"""Fine-tuning: train the pruned network on, from the weights it has."""

from __future__ import annotations

from metaprune.recover.task import RecoverTask
from metaprune.train.history import History


def finetune(task: RecoverTask) -> History:
    """Cross-entropy training of `task.model` with `task.config.train`."""
    return task.train()
