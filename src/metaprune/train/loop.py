"""The training loop: Accelerate for devices, precision and processes, epochs that are reproducible one by one."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from metaprune.core.errors import ConfigError, DataError, TrainingDivergedError
from metaprune.core.rng import Rng
from metaprune.train.batch import Data, Split, call_model, channels_last, cross_entropy, logits_of, pass_shape, share_of
from metaprune.train.checkpoint import load_checkpoint, restore, save_checkpoint, shapes_digest
from metaprune.train.config import TrainConfig
from metaprune.train.engine import engine, forward_restored
from metaprune.train.evaluate import add_batch, new_totals, quality_from_sums, quality_sums
from metaprune.train.history import EpochRow, History
from metaprune.train.modes import modes_restored
from metaprune.train.progress import TrainProgress
from metaprune.train.schedule import learning_rate, steps_per_epoch

Objective = Callable[[Any, Any, Tensor], Tensor]
"""(model output, inputs, labels [B]) -> mean loss []."""


def train(
    model: nn.Module,
    data: Data,
    config: TrainConfig,
    *,
    rng: Rng,
    device: torch.device | str | None = None,
    objective: Objective | None = None,
    checkpoint_dir: Path | None = None,
    progress: bool = True,
    on_epoch: Callable[[EpochRow], None] | None = None,
    label: str = "train",
    identity: Mapping[str, Any] | None = None,
) -> History:
    """Train `model` in place on `data.train`; evaluate on `data.val` after every epoch, never on the test split.

    The model ends on the training device, in the modes it came in; torch's global random state is restored. Without
    `objective` the loss is cross-entropy with `config.label_smoothing`.

    With `checkpoint_dir` every epoch is saved there, and a call that finds a checkpoint of the same run continues after
    it: the same config, seed, data name and size (and `data.digest` if there is one), parameter shapes and `identity`
    (whatever else tells runs apart, JSON-able). On the CPU the result is bit for bit that of an uninterrupted run.
    `on_epoch` is called with the epoch's row after the checkpoint is on disk.

    A split over a user's DataLoader keeps the loader's batches: `config.batch_size` then counts for validation only.

    Launched as several processes (`accelerate launch`, `torchrun`), every process walks the same shuffled batches and
    takes samples rank, rank + n, ... of each; what does not divide by n is left out so that all take equal steps.
    BatchNorm statistics are those of rank 0's share, and dropout draws the same masks in every process.
    `checkpoint_dir` has to be visible to all processes.

    Raises:
        DataError: no or too small a training split.
        ConfigError: nothing to train, a batch smaller than the number of processes, another run's checkpoint, or a
            device that is not there.
        TrainingDivergedError: loss or gradient is not finite; raised before the update.
    """
    split = _training_split(data)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("no parameter of the model has requires_grad=True: nothing to train; unfreeze some")
    run_identity = {**_identity(model, data, split, config, rng), **(identity or {})}
    with ExitStack() as stack:
        stack.enter_context(modes_restored(model))
        stack.enter_context(forward_restored(model))
        accelerator = stack.enter_context(engine(config.mixed_precision, device))
        run = _Run(accelerator, model, split, config, objective or _cross_entropy(config.label_smoothing), rng)
        stack.callback(run.optimizer.zero_grad)
        history = run.resume(checkpoint_dir, run_identity) if checkpoint_dir is not None else History()
        done, show = len(history.rows) * run.steps_per_epoch, progress and accelerator.is_main_process
        bar = stack.enter_context(TrainProgress(label, total_steps=run.total_steps, done_steps=done, show=show))
        for epoch in range(len(history.rows), run.num_epochs):
            row = run.epoch(epoch, data.val, bar)
            history.rows.append(row)
            if checkpoint_dir is not None:
                run.save(checkpoint_dir, history, run_identity)
            if accelerator.is_main_process:
                bar.epoch(row, run.num_epochs)
            if on_epoch is not None:
                on_epoch(row)
    return history


class _Run:
    """One training run: what stays the same from step to step."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        split: Split,
        config: TrainConfig,
        objective: Objective,
        rng: Rng,
    ):
        self.accelerator, self.model, self.split, self.config = accelerator, model, split, config
        self.objective, self.rng = objective, rng
        self.rank, self.num_processes = accelerator.process_index, accelerator.num_processes
        samples, self.batch_size = pass_shape(split, config.batch_size)
        if self.batch_size < self.num_processes:
            raise ConfigError(
                f"batch_size={self.batch_size} is below the {self.num_processes} processes that share each batch: "
                f"use at least {self.num_processes}"
            )
        self.steps_per_epoch = steps_per_epoch(samples, self.batch_size, self.num_processes)
        if self.steps_per_epoch == 0:
            raise DataError(
                f"{samples} training samples over {self.num_processes} process(es) leave less than two per step: "
                "use more samples, or batch_size=1 for a network without batch normalisation"
            )
        self.total_steps = max(1, round(config.epochs * self.steps_per_epoch))
        self.warmup_steps = round(config.warmup_epochs * self.steps_per_epoch)
        self.num_epochs = math.ceil(self.total_steps / self.steps_per_epoch)
        self.wrapped, self.optimizer = accelerator.prepare(model, make_optimizer(model, config))

    def resume(self, directory: Path, identity: Mapping[str, Any]) -> History:
        checkpoint = load_checkpoint(directory, identity)
        if checkpoint is None:
            return History()
        restore(checkpoint, model=self.model, optimizer=self.optimizer, scaler=self.accelerator.scaler)
        return checkpoint.history

    def save(self, directory: Path, history: History, identity: Mapping[str, Any]) -> None:
        if self.accelerator.is_main_process:
            save_checkpoint(
                directory,
                model=self.model,
                optimizer=self.optimizer,
                scaler=self.accelerator.scaler,
                history=history,
                identity=identity,
            )
        self.accelerator.wait_for_everyone()

    def epoch(self, epoch: int, val: Split | None, bar: TrainProgress) -> EpochRow:
        first = epoch * self.steps_per_epoch
        steps = min(self.steps_per_epoch, self.total_steps - first)
        totals = new_totals(self.accelerator.device)
        stream = self.rng.child("epoch", epoch)
        self.wrapped.train()
        start = time.perf_counter()
        # one stream for all processes: a user's DataLoader shuffles by the global generator, and has to agree
        with stream.torch_global():
            for index, (inputs, labels) in enumerate(self._batches(stream.child("data"), steps)):
                self._step(first + index, inputs, labels, totals)
                bar.step((index + 1) * self.batch_size / (time.perf_counter() - start))
        totals = self.accelerator.reduce(totals, reduction="sum")
        train_quality = quality_from_sums(totals)  # waits for the device
        seconds = time.perf_counter() - start
        self._share_buffers()
        val_quality = None
        if val is not None and len(val) > 0:
            with stream.child("val").torch_global():  # the same order in all processes
                sums = quality_sums(
                    self.model,
                    val,
                    batch_size=self.config.batch_size,
                    device=self.accelerator.device,
                    rank=self.rank,
                    num_processes=self.num_processes,
                )
            val_quality = quality_from_sums(self.accelerator.reduce(sums, reduction="sum"))
        return EpochRow(
            epoch=epoch + 1,
            train_loss=train_quality.loss,
            train_accuracy=train_quality.accuracy,
            val_loss=val_quality.loss if val_quality else None,
            val_accuracy=val_quality.accuracy if val_quality else None,
            lr=self._lr(first + steps - 1),
            seconds=seconds,
            samples_per_s=train_quality.samples / seconds,
        )

    def _batches(self, rng: Rng, steps: int) -> Iterator[tuple[Any, Tensor]]:
        """This process's share of the epoch's first `steps` batches."""
        batches = self.split.batches(
            self.batch_size, device=self.accelerator.device, rng=rng, augment=self.config.augment
        )
        done = 0
        for inputs, labels in batches:
            if len(labels) != self.batch_size and done < self.steps_per_epoch - 1:
                raise DataError(
                    f"the training split yields a batch of {len(labels)} where {self.batch_size} were asked for: its "
                    "batches have to be full, but for the last"
                )
            stop = len(labels) - len(labels) % self.num_processes
            if self.num_processes > 1:
                inputs, labels = (share_of(value, self.rank, stop, self.num_processes) for value in (inputs, labels))
            yield channels_last(inputs) if self.config.channels_last else inputs, labels
            done += 1
            if done == steps:
                return
        raise DataError(
            f"the training split yielded {done} batches of {self.batch_size} where its length {len(self.split)} "
            f"promises {steps}: its __len__ and batches() disagree"
        )

    def _step(self, step: int, inputs: Any, labels: Tensor, totals: Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr(step)
        with self.accelerator.autocast():
            output = call_model(self.wrapped, inputs)
            loss = self.objective(output, inputs, labels)
        self._require_finite("loss", loss.detach(), step)
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        if self.config.max_grad_norm is not None:
            norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
            if self.accelerator.scaler is None and norm is not None:  # a scaler skips such steps by itself
                self._require_finite("gradient norm", norm, step)
        self.optimizer.step()
        add_batch(totals, loss, logits_of(output), labels)

    def _require_finite(self, what: str, value: Tensor, step: int) -> None:
        bad = (~torch.isfinite(value)).to(torch.float32).reshape(1)
        if self.num_processes > 1:  # all processes have to stop together, or the others wait forever
            bad = self.accelerator.reduce(bad, reduction="sum")
        if bad.item() > 0:
            raise TrainingDivergedError(
                f"the {what} is {float(value):g} at step {step} (epoch {step // self.steps_per_epoch + 1}, learning "
                f"rate {self._lr(step):.3g}, precision {self.accelerator.mixed_precision}); the weights are those "
                "before this step. Lower lr, add warmup_epochs or max_grad_norm, try mixed_precision='no', and check "
                "the inputs for NaN"
            )

    def _lr(self, step: int) -> float:
        return learning_rate(step, total_steps=self.total_steps, warmup_steps=self.warmup_steps, config=self.config)

    def _share_buffers(self) -> None:
        """Rank 0's buffers on every rank: each has updated its own BatchNorm statistics since the last forward."""
        if self.num_processes > 1:
            for buffer in self.model.buffers():
                buffer.data.copy_(broadcast(buffer.data.clone(), from_process=0))


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of `config` over the parameters that require gradients."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [{"params": parameters, "weight_decay": config.weight_decay}]
    if not config.decay_norm_and_bias:
        decayed = [p for p in parameters if p.ndim > 1]
        others = [p for p in parameters if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)


def _cross_entropy(label_smoothing: float) -> Objective:
    def objective(output: Any, inputs: Any, labels: Tensor) -> Tensor:
        return cross_entropy(logits_of(output), labels, label_smoothing=label_smoothing)

    return objective


def _training_split(data: Data) -> Split:
    if data.train is None or len(data.train) == 0:
        raise DataError(f"data {data.name!r} has no training samples: training and recovery need a train split")
    return data.train


def _identity(model: nn.Module, data: Data, split: Split, config: TrainConfig, rng: Rng) -> dict[str, Any]:
    """What two runs have to share for one to continue the other's checkpoint."""
    return {
        "config": dataclasses.asdict(config),
        "rng": [rng.seed, *rng.path],
        "data": [data.name, *pass_shape(split, config.batch_size), str(getattr(data, "digest", ""))],
        "shapes": shapes_digest(model),
    }
