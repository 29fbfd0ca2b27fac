"""One Accelerate engine per training run, without traces in the process or on the model afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType, GradientAccumulationPlugin
from torch import nn

from metaprune.core.errors import ConfigError, NotAvailableError
from metaprune.train.config import MixedPrecision

_REPLICATED = ("NO", "MULTI_GPU", "MULTI_CPU", "MULTI_XPU", "MULTI_NPU")
_SET_BY_PREPARE = ("forward", "_original_forward", "_is_accelerate_prepared")


@contextmanager
def engine(
    mixed_precision: MixedPrecision,
    device: torch.device | str | None,
    log_with: Any = None,
    logging_folder: Path | None = None,
) -> Iterator[Accelerator]:
    """Hold an `Accelerator` on `device` (None: Accelerate's choice, a GPU where there is one).

    Args:
        log_with: name of an experiment tracker, or a GeneralTracker.
        logging_folder: where trackers that write files put them.

    Raises `ConfigError` for a device or a precision that this machine or this launch does not have, and
    `NotAvailableError` under FSDP, DeepSpeed and other launches that split the model.
    """
    wanted = None if device is None else torch.device(device)
    if wanted is not None and wanted.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={str(wanted)!r}, but torch sees no CUDA device here: use device='cpu'")
    on_cpu = wanted is not None and wanted.type == "cpu"
    precision = resolve_precision(mixed_precision, on_cpu=on_cpu)
    with ExitStack() as stack:
        stack.enter_context(_accelerate_state_restored())
        if wanted is not None and wanted.type == "cuda" and wanted.index is not None:
            # Accelerate has no device argument: a single process takes CUDA's current device
            stack.enter_context(torch.cuda.device(wanted.index))
        accelerator = Accelerator(
            mixed_precision=precision,
            cpu=on_cpu,
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            log_with=log_with,
            project_dir=logging_folder,
        )
        kind = accelerator.distributed_type
        if kind.value not in _REPLICATED:
            raise NotAvailableError(
                f"training under {kind.value} is not there: launch with plain data parallelism "
                "(`accelerate launch --multi_gpu`, `torchrun`), which keeps a whole model in every process"
            )
        if wanted is not None and wanted.type != accelerator.device.type:
            raise ConfigError(
                f"device={str(wanted)!r}, but this launch trains on {accelerator.device}: leave `device` out or launch "
                "for the other device"
            )
        yield accelerator


def resolve_precision(mixed_precision: MixedPrecision, *, on_cpu: bool) -> str:
    """'no', 'bf16' or 'fp16' for this machine. Raises `ConfigError` for fp16 without CUDA."""
    has_cuda = torch.cuda.is_available() and not on_cpu
    if mixed_precision == "auto":
        if not has_cuda:
            return "no"
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if mixed_precision == "fp16" and not has_cuda:
        raise ConfigError("mixed_precision='fp16' needs a CUDA device: use 'bf16' or 'no' on the CPU")
    return mixed_precision


@contextmanager
def _accelerate_state_restored() -> Iterator[None]:
    """Give the run its own Accelerate state: it is one per process, and refuses a second precision or device.

    The process group of a multi-process launch stays as it is.
    """
    states = [AcceleratorState._shared_state, GradientState._shared_state]
    if PartialState._shared_state.get("distributed_type", DistributedType.NO) == DistributedType.NO:
        states.append(PartialState._shared_state)
    before = [dict(state) for state in states]
    for state in states:
        state.clear()
    try:
        yield
    finally:
        keep_group = PartialState._shared_state.get("distributed_type") not in (None, DistributedType.NO)
        for state, saved in zip(states, before, strict=True):
            if state is PartialState._shared_state and keep_group:
                continue
            state.clear()
            state.update(saved)


@contextmanager
def forward_restored(model: nn.Module) -> Iterator[None]:
    """Take Accelerate's autocast wrapper off `model.forward` on exit: the caller gets its own module back."""
    before = {name: model.__dict__[name] for name in _SET_BY_PREPARE if name in model.__dict__}
    try:
        yield
    finally:
        for name in _SET_BY_PREPARE:
            model.__dict__.pop(name, None)
        model.__dict__.update(before)
