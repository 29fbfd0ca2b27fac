"""LoRA (Hu et al., ICLR 2022): low-rank updates of the layers' weights are trained, then merged into them.

The layers are PEFT's, the loss is distil's. Gradients and the optimiser's state are those of the updates alone.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import nn

from metaprune.core.errors import ConfigError, NotAvailableError
from metaprune.core.imports import import_optional
from metaprune.recover.distil import distillation_of
from metaprune.recover.task import RecoverTask
from metaprune.train.checkpoint import shapes_digest
from metaprune.train.history import History


def lora(task: RecoverTask) -> History:
    """Train low-rank updates of the layers of `task.model`, and merge them.

    The model has the layers and parameters that it had, frozen where they were.

    Raises:
        MissingDependencyError: PEFT is not installed.
        NotAvailableError: no layer is of a kind that it takes.
        ConfigError: there is no original, or the cut masks single weights.
    """
    if task.pruned is not None and task.pruned.masks:
        raise ConfigError("recover='lora' would fill the single weights that are masked: use 'finetune' or 'distil'")
    loss, options = distillation_of(task)
    model, rank = task.model, task.config.lora_rank
    before, learns = shapes_digest(model), {name: p.requires_grad for name, p in model.named_parameters()}
    adapted = _adapted(model, rank)
    try:
        history = task.train(model=adapted, loss=loss, optimizer="adamw", options={**options, "lora_rank": rank})
        adapted.merge_adapter()
    finally:
        adapted.unload()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(learns[name])
    assert shapes_digest(model) == before, "the merged network is not plain"
    return history


def _adapted(model: nn.Module, rank: int) -> Any:
    """Put updates of rank `rank`, zero at first, beside all linear layers and convolutions that nothing shares."""
    peft = import_optional("peft", "lora")
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    names = [n for n, m in model.named_modules() if _is_layer(m) and uses[id(m.weight)] == 1]
    if not names:
        raise NotAvailableError(
            "recover='lora' finds no linear layer or convolution that it could update; a graph form has none: use "
            "'finetune' or 'distil', or form='module'"
        )
    return peft.get_peft_model(model, peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names))


def _is_layer(module: nn.Module) -> bool:
    """Tell layers that PEFT updates; of kinds by type, as some subclasses are read past their forward."""
    if type(module) is nn.Conv2d:
        return module.groups == 1
    return type(module) is nn.Linear or type(module).__name__ == "Conv1D"  # transformers' linear layer of GPT-2
