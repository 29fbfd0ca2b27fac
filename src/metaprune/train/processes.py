"""Data parallelism for training that is no single module: shares of a batch, means of gradients, one writer.

The loop in `train.loop` leaves gradients to Accelerate's wrapped model. A step whose parameters are loose tensors (of
some meta-training) has nothing to wrap, and averages them itself, in one message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import broadcast
from torch import Tensor

from metaprune.core.errors import ConfigError


class Processes:
    """The processes of one launch; without an accelerator it is this one alone, in full precision.

    All of them have to make the same calls in the same order.

    Raises:
        ConfigError: in several processes, tensors on `device`, which is another GPU than this process's own.
    """

    def __init__(self, accelerator: Accelerator | None = None, device: torch.device | None = None):
        self._accelerator = accelerator
        self.rank = 0 if accelerator is None else accelerator.process_index
        self.count = 1 if accelerator is None else accelerator.num_processes
        process_device = torch.device("cpu") if accelerator is None else accelerator.device
        if (
            self.count > 1
            and device is not None
            and process_device.type != "cpu"
            and process_device.index != device.index
        ):
            raise ConfigError(
                f"the network is on {device}, and process {self.rank} of {self.count} works on {process_device}: call "
                "torch.cuda.set_device(LOCAL_RANK) before the network is moved"
            )

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def autocast(self) -> AbstractContextManager:
        """Mixed precision, as the accelerator was made with."""
        return nullcontext() if self._accelerator is None else self._accelerator.autocast()

    def share(self, samples: int) -> tuple[slice, float]:
        """Return the slice of a batch that is this process's, and its part of the batch times the number of processes.

        Rank, rank + n, ... of them. Mean losses over the shares, each times its part, have the whole batch's mean as
        their mean over the processes, also where the shares differ by a sample. With fewer than two samples for each,
        all processes take the whole batch.
        """
        if self.count == 1 or samples < 2 * self.count:
            return slice(None), 1.0
        count = len(range(self.rank, samples, self.count))
        return slice(self.rank, None, self.count), count * self.count / samples

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor]) -> None:
        """Average every tensor over the processes, in place; all in one message."""
        if self.count == 1 or self._accelerator is None:
            return
        averages = self._accelerator.reduce(torch.cat([t.reshape(-1) for t in tensors]), reduction="mean")
        _spread(averages, tensors)

    @torch.no_grad()
    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Copy every floating tensor from the main process, in place: BatchNorm statistics saw its own share only."""
        floating = [t for t in tensors if t.is_floating_point()]
        if self.count > 1 and floating:
            _spread(broadcast(torch.cat([t.reshape(-1) for t in floating]), from_process=0), floating)

    def wait(self) -> None:
        """Until all processes are here."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()


ALONE = Processes()


def _spread(values: Tensor, tensors: Sequence[Tensor]) -> None:
    for part, tensor in zip(values.split([t.numel() for t in tensors]), tensors, strict=True):
        tensor.copy_(part.reshape(tensor.shape))


def is_main_process() -> bool:
    """Tell whether this is the main process: outside of a launch, yes; once an engine has joined one, rank 0 alone."""
    return not PartialState._shared_state or PartialState().is_main_process


def by_main_process(write: Callable[[], object]) -> None:
    """Call it in the main process alone; the others wait until it is done."""
    with main_process_first() as main:
        if main:
            write()


@contextmanager
def main_process_first() -> Iterator[bool]:
    """Let the main process through the block before the others start on it; yield whether this is it.

    For files that one process writes and all read.
    """
    if not PartialState._shared_state:
        yield True
        return
    state = PartialState()
    with state.main_process_first():
        yield state.is_main_process
