"""The training loop: Accelerate for devices, precision and processes, epochs that are reproducible one by one."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from metaprune.core.errors import ConfigError, DataError, NoEffectWarning, TrainingDivergedError
from metaprune.core.modes import hold_batchnorm, modes_restored
from metaprune.core.rng import Rng
from metaprune.core.tensors import named_tensors
from metaprune.data.loader_split import replayed
from metaprune.data.types import NO_SAMPLES, Data
from metaprune.objective import Objective, Split
from metaprune.objective.base import require_scalar
from metaprune.objective.batch import batch_size_of, call_model, channels_last, channels_last_is_safe, share_of
from metaprune.train.averaging import WeightAverage
from metaprune.train.checkpoint import load_checkpoint, restore, save_checkpoint, shapes_digest
from metaprune.train.config import TrainConfig
from metaprune.train.engine import engine, forward_restored
from metaprune.train.evaluate import add_batch, new_totals, quality_from_sums, quality_sums, scores_of
from metaprune.train.history import EpochRow, History
from metaprune.train.loss import TrainLoss
from metaprune.train.one_pass import Pass, training_split
from metaprune.train.optimizer import make_optimizer
from metaprune.train.progress import TrainProgress
from metaprune.train.rate import fitting_rate
from metaprune.train.schedule import learning_rate
from metaprune.train.tracking import log_epoch, tracked, tracker_of

NEW_WEIGHTS_LR = {"sgd": 0.05, "adamw": 0.001}  # of `lr="auto"`, by optimiser; others as sgd


def train(
    model: nn.Module,
    data: Data,
    config: TrainConfig,
    *,
    rng: Rng,
    device: torch.device | str | None = None,
    loss: TrainLoss | None = None,
    is_trained: bool = False,
    checkpoint_dir: Path | None = None,
    progress: bool = True,
    on_epoch: Callable[[EpochRow], None] | None = None,
    label: str = "train",
    identity: Mapping[str, Any] | None = None,
) -> History:
    """Train `model` in place on `data.train`; evaluate on `data.val` after every epoch, never on the test split.

    The model ends on the training device, in the modes it came in; torch's global random state is restored. Without
    `loss` the loss is the objective's (`data.objective`) with `config.label_smoothing`.
    Where `is_trained`, `lr="auto"` is found by a ramp from the weights that the model comes with.

    With `checkpoint_dir` every epoch is saved there, and a call that finds a checkpoint of the same run continues after
    it: the same config, seed, data name and size (and `data.digest` if there is one), parameter shapes and `identity`
    (whatever else tells runs apart, JSON-able). On the CPU the result is bit for bit that of an uninterrupted run.
    `on_epoch` is called with the epoch's row after the checkpoint is on disk.

    A split over a user's DataLoader keeps the loader's batches: `config.batch_size` then counts for validation only.
    Under a label-free objective BatchNorm keeps its running statistics: with those of a batch not even the original
    gives its own outputs. The mean loss weighs by the objective's items (tokens that are not masked, say), over parts
    of a batch and over processes.

    Launched as several processes (`accelerate launch`, `torchrun`), every process walks the same shuffled batches and
    takes samples rank, rank + n, ... of each; what does not divide by n is left out so that all take equal steps.
    BatchNorm statistics are those of rank 0's share, and dropout draws the same masks in every process.
    `checkpoint_dir` has to be visible to all processes.

    Raises:
        DataError: no or too small a training split, or labels that are not of the objective's kind.
        ConfigError: nothing to train, a batch smaller than the number of processes, another run's checkpoint, or a
            device that is not there.
        TrainingDivergedError: loss or gradient is not finite; raised before the update.
    """
    split = training_split(data)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("no parameter of the model has requires_grad=True: nothing to train; unfreeze some")
    loss = TrainLoss(data.require_objective(), config.label_smoothing) if loss is None else loss
    one_pass = Pass.of(split, config)
    run_identity = {**_identity(model, data, one_pass, config, loss.objective, rng), **(identity or {})}
    with ExitStack() as stack:
        stack.enter_context(modes_restored(model))
        stack.enter_context(forward_restored(model))
        folder = Path("runs") if checkpoint_dir is None else checkpoint_dir
        tracker = tracker_of(config, folder)
        accelerator = stack.enter_context(engine(config.mixed_precision, device, tracker, folder))
        stack.enter_context(tracked(accelerator, config))
        run = _Run(accelerator, model, split, one_pass, config, loss, rng, is_trained)
        stack.callback(run.optimizer.zero_grad)
        history = run.resume(checkpoint_dir, run_identity) if checkpoint_dir is not None else History()
        done, show = len(history.rows) * run.steps_per_epoch, progress and accelerator.is_main_process
        metric = loss.objective.primary
        bar = stack.enter_context(TrainProgress(label, metric, total_steps=run.total_steps, done_steps=done, show=show))
        for epoch in range(len(history.rows), run.num_epochs):
            row = run.epoch(epoch, data.val, bar)
            history.rows.append(row)
            if checkpoint_dir is not None:
                run.save(checkpoint_dir, history, run_identity)
            if accelerator.is_main_process:
                bar.epoch(row, run.num_epochs)
            log_epoch(accelerator, label, row)
            if on_epoch is not None:
                on_epoch(row)
        if run.average is not None:
            run.average.swap()
    return history


class _Run:
    """One training run: what stays the same from step to step."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        split: Split,
        one_pass: Pass,
        config: TrainConfig,
        loss: TrainLoss,
        rng: Rng,
        is_trained: bool,
    ):
        self.accelerator, self.model, self.split, self.config = accelerator, model, split, config
        self.loss, self.objective, self.rng = loss, loss.objective, rng
        if config.channels_last and not channels_last_is_safe(accelerator.device):
            warnings.warn(
                "channels_last=True does nothing on this CPU: its kernels damage memory in that layout, so images keep "
                "PyTorch's own",
                NoEffectWarning,
                stacklevel=3,
            )
        self.rank, self.num_processes = accelerator.process_index, accelerator.num_processes
        self.batch_size, self.pass_steps = one_pass.batch_size, one_pass.steps(self.num_processes)
        self.steps_per_epoch = config.steps_per_epoch or self.pass_steps
        self.total_steps = max(1, round(config.epochs * self.steps_per_epoch))
        self.warmup_steps = round(config.warmup_epochs * self.steps_per_epoch)
        self.num_epochs = math.ceil(self.total_steps / self.steps_per_epoch)
        self.lr = NEW_WEIGHTS_LR.get(config.optimizer, NEW_WEIGHTS_LR["sgd"]) if config.lr == "auto" else config.lr
        self.wrapped, self.optimizer = accelerator.prepare(model, make_optimizer(model, config, self.lr))
        self.average = None
        if config.lr == "auto" and is_trained:
            self.lr = self._fitting_rate(rng.child("rate"))
        if config.ema_decay is not None:
            self.average = WeightAverage(model, config.ema_decay)

    def _fitting_rate(self, rng: Rng) -> float:
        """Find the rate by a ramp; weights, buffers and optimiser are as they were."""
        tensors, optimizer = named_tensors(self.model)[0], copy.deepcopy(self.optimizer.state_dict())
        before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        batches = itertools.chain.from_iterable(self._batches(rng.child(n), self.pass_steps) for n in itertools.count())

        def update(lr: float) -> bool:
            with contextlib.suppress(TrainingDivergedError):
                self._step(0, *next(batches), new_totals(self.accelerator.device), lr=lr)
                return True
            return False

        @torch.no_grad()
        def judged() -> float:
            with rng.torch_global(), self.accelerator.autocast():  # the same dropout each time
                loss = self.loss(call_model(self.wrapped, held_out[0]), *held_out)
            return float(self.accelerator.reduce(loss.detach().float(), reduction="mean"))

        self._train_mode()
        with replayed(self.split, rng):  # a loader's own generator is as it was
            held_out = next(batches)
            lr = fitting_rate(update, judged)
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(before[name])
        self.optimizer.load_state_dict(optimizer)
        return lr

    def _train_mode(self) -> None:
        self.wrapped.train()
        if self.objective.is_label_free:  # its target was made with running statistics
            hold_batchnorm(self.model)

    def resume(self, directory: Path, identity: Mapping[str, Any]) -> History:
        checkpoint = load_checkpoint(directory, identity)
        if checkpoint is None:
            return History()
        restore(checkpoint, model=self.model, optimizer=self.optimizer, scaler=self.accelerator.scaler)
        with checkpoint.understood():
            if self.average is not None:
                self.average.restore(checkpoint.part("average"))
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
                extra={} if self.average is None else {f"average.{n}": t for n, t in self.average.average.items()},
            )
        self.accelerator.wait_for_everyone()

    def epoch(self, epoch: int, val: Split | None, bar: TrainProgress) -> EpochRow:
        first = epoch * self.steps_per_epoch
        steps = min(self.steps_per_epoch, self.total_steps - first)
        totals = new_totals(self.accelerator.device)
        stream = self.rng.child("epoch", epoch)
        self._train_mode()
        start = time.perf_counter()
        # one stream for all processes: a user's DataLoader shuffles by the global generator, and has to agree
        with stream.torch_global():
            for index, (inputs, target) in enumerate(self._batches(stream.child("data"), steps)):
                totals = self._step(first + index, inputs, target, totals)
                bar.step((index + 1) * batch_size_of(inputs) * self.num_processes / (time.perf_counter() - start))
        totals = self.accelerator.reduce(totals, reduction="sum")
        train_quality = quality_from_sums(totals, self.objective)  # waits for the device
        seconds = time.perf_counter() - start
        self._share_buffers()
        return EpochRow(
            epoch=epoch + 1,
            train=train_quality.metrics,
            val=self._validated(val, stream.child("val")),
            lr=self._lr(first + steps - 1),
            seconds=seconds,
            samples_per_s=train_quality.samples / seconds,
        )

    def _validated(self, val: Split | None, rng: Rng) -> Mapping[str, float] | None:
        """The objective's figures on the validation split; of averaged weights, where they are averaged."""
        if val is None or val is NO_SAMPLES:
            return None
        with nullcontext() if self.average is None else self.average.in_place():
            with rng.torch_global():  # the same order in all processes
                sums = quality_sums(
                    self.model,
                    val,
                    objective=self.objective,
                    batch_size=self.config.batch_size,
                    device=self.accelerator.device,
                    rank=self.rank,
                    num_processes=self.num_processes,
                )
            scores = scores_of(self.model, val, self.objective)
        totals = self.accelerator.reduce(_padded(sums, self.accelerator), reduction="sum")
        return quality_from_sums(totals, self.objective, scores).metrics

    def _batches(self, rng: Rng, steps: int) -> Iterator[tuple[Any, Any]]:
        """This process's share of the epoch's first `steps` batches; a stream that ends early is started again."""
        done, passes = 0, 0
        while done < steps:
            before, part = done, rng if passes == 0 else rng.child("pass", passes)
            batches = self.split.batches(
                self.batch_size or self.config.batch_size,
                device=self.accelerator.device,
                rng=part,
                augment=self.config.augment,
            )
            for inputs, target in batches:
                size = batch_size_of(inputs)
                if self.batch_size not in (None, size) and (done + 1) % self.pass_steps:
                    raise DataError(
                        f"the training split yields a batch of {size} where {self.batch_size} were asked for: its "
                        "batches have to be full, but for the last"
                    )
                stop = size - size % self.num_processes
                if self.num_processes > 1:
                    inputs, target = (share_of(v, self.rank, stop, self.num_processes) for v in (inputs, target))
                yield channels_last(inputs) if self.config.channels_last else inputs, target
                done += 1
                if done == steps:
                    return
            passes += 1
            if self.config.steps_per_epoch is None or done == before:
                raise DataError(
                    f"the training split yielded {done} batches of {self.batch_size} where its length "
                    f"{len(self.split)} promises {steps}: its __len__ and batches() disagree"
                )

    def _step(self, step: int, inputs: Any, target: Any, totals: Tensor, lr: float | None = None) -> Tensor:
        """One update, at the schedule's rate unless `lr` is given; returns the totals with the batch added."""
        lr = self._lr(step) if lr is None else lr
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_factor", 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        parts = self._parts(inputs, target)
        for index, (part_inputs, part_target, items, weight) in enumerate(parts):
            with nullcontext() if index == len(parts) - 1 else self.accelerator.no_sync(self.wrapped):
                with self.accelerator.autocast():
                    output = call_model(self.wrapped, part_inputs)
                    loss = self.loss(output, part_inputs, part_target)
                require_scalar(self.objective.name, loss)
                self._require_finite("loss", loss.detach(), step)
                self.accelerator.backward(loss if weight == 1.0 else loss * weight)
            judged = self.loss.judged(output)
            totals = add_batch(totals, loss, self.objective, judged, part_inputs, part_target, items)
        if self.config.max_grad_norm is not None:
            norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
            if self.accelerator.scaler is None and norm is not None:  # a scaler skips such steps by itself
                self._require_finite("gradient norm", norm, step)
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        return totals

    def _parts(self, inputs: Any, target: Any) -> list[tuple[Any, Any, float, float]]:
        """(inputs, target, items, weight) of every part of a batch; counting items waits for the device.

        The weighted sum of the parts' mean losses, averaged over processes, is the mean over all items of all
        processes: parts and processes may hold different numbers of tokens.
        """
        size = batch_size_of(inputs)
        length = -(-size // min(self.config.accumulate, size))
        parts = [(inputs, target)]
        if length < size:
            parts = [tuple(share_of(v, i, i + length) for v in (inputs, target)) for i in range(0, size, length)]
        counts = [self.objective.items(part_target) for _, part_target in parts]
        everywhere = sum(counts)
        if self.num_processes > 1:
            count = torch.tensor([float(everywhere)], dtype=torch.float64, device=self.accelerator.device)
            everywhere = float(self.accelerator.reduce(count, reduction="sum")) / self.num_processes
        unjudged = 1.0 if len(parts) == 1 else 0.0
        return [(*part, n, n / everywhere if everywhere else unjudged) for part, n in zip(parts, counts, strict=True)]

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
        steps = {"total_steps": self.total_steps, "warmup_steps": self.warmup_steps}
        return learning_rate(step, self.lr, **steps, config=self.config)

    def _share_buffers(self) -> None:
        """Rank 0's buffers on every rank: each has updated its own BatchNorm statistics since the last forward."""
        if self.num_processes > 1:
            for buffer in self.model.buffers():
                buffer.data.copy_(broadcast(buffer.data.clone(), from_process=0))


def _padded(sums: Tensor, accelerator: Accelerator) -> Tensor:
    """Sums of equal length in every process: one that saw no batch holds none of the objective's."""
    if accelerator.num_processes == 1:
        return sums
    length = torch.tensor([len(sums)], device=sums.device)
    longest = int(accelerator.gather(length).max())
    return torch.cat([sums, sums.new_zeros(longest - len(sums))])


def _identity(
    model: nn.Module, data: Data, one_pass: Pass, config: TrainConfig, objective: Objective, rng: Rng
) -> dict[str, Any]:
    """What two runs have to share for one to continue the other's checkpoint."""
    return {
        "config": dataclasses.asdict(config),
        "objective": objective.name,
        "rng": [rng.seed, *rng.path],
        "data": [data.name, one_pass.batch_size, one_pass.steps(1), data.digest],
        "shapes": shapes_digest(model),
    }
