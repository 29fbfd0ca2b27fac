"""Training from scratch: is the structure worth something without the inherited weights? (Liu et al. 2019)"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from metaprune.core.errors import NotAvailableError
from metaprune.core.rng import Rng
from metaprune.core.side_effects import copy_model
from metaprune.recover.task import RecoverTask
from metaprune.train.history import History

Initialise = Callable[[nn.Module], None]


def reinitialise(model: nn.Module, rng: Rng) -> None:
    """Re-initialise every module by its own `reset_parameters`, children first, under `rng`; buffers of BatchNorm too.

    Raises `NotAvailableError`, before anything is changed, when a module holds parameters and has no such method.
    """
    orphans: list[str] = []
    resets = []
    for prefix, module in reversed(list(model.named_modules())):
        # children first: attention re-initialises a bias of its child, and has only the underscored method
        reset = getattr(module, "reset_parameters", None)
        if reset is None and isinstance(module, nn.MultiheadAttention):
            reset = module._reset_parameters
        if reset is not None:
            resets.append(reset)
            continue
        orphans += [f"{prefix}.{name}".lstrip(".") for name, _ in module.named_parameters(recurse=False)]
    if orphans:
        shown = ", ".join(sorted(orphans)[:8]) + (", ..." if len(orphans) > 8 else "")
        raise NotAvailableError(
            f"{len(orphans)} parameters belong to modules without `reset_parameters`, so how they are initialised is "
            f"not known: {shown}. Pass `initialise` (called with the model), a model form with its `factory`, or use "
            "recover='finetune'"
        )
    with rng.torch_global():
        for reset in resets:
            reset()


def initialise_from(
    original: nn.Module, tensors_of: Callable[[nn.Module], Mapping[str, Tensor]], rng: Rng
) -> Initialise:
    """Make an initialiser for a graph form, whose modules have none: new weights of the original, cut to size.

    tensors_of: a re-initialised copy of the original -> its tensors by name, of the smaller network's shapes.
    """

    def initialise(model: nn.Module) -> None:
        fresh = copy_model(original)
        reinitialise(fresh, rng)
        tensors = tensors_of(fresh)
        with torch.no_grad():
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
                if name in tensors:
                    tensor.copy_(tensors[name])

    return initialise


def train_from_scratch(task: RecoverTask) -> History:
    """Give `task.model` new weights (by `task.initialise` if there is one) and train it with `task.config.train`."""
    rng = task.rng.child("initialise")
    if task.initialise is None:
        reinitialise(task.model, rng)
    else:
        with rng.torch_global():
            task.initialise(task.model)
    return task.train()
