"""PruningNet: a network generates the weights of any structure, an evolutionary search finds the best in a budget.

MetaPruning: Meta Learning for Automatic Neural Network Channel Pruning, Liu et al., ICCV 2019. Sandwich sampling and
in-place distillation are of Universally Slimmable Networks, Yu & Huang, ICCV 2019.
"""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from metaprune.calibration.calibrate import calibrate
from metaprune.core.errors import ConfigError, DataError
from metaprune.core.files import tensors_digest
from metaprune.core.modes import device_of
from metaprune.core.rng import Rng
from metaprune.core.strict import from_dict
from metaprune.data import Data, Split
from metaprune.data.loader_split import replayed
from metaprune.data.splits import SPLIT_RNG, hold_out, without
from metaprune.data.types import NO_SAMPLES
from metaprune.methods.criteria.magnitude import Magnitude
from metaprune.methods.pruningnet.banks import Bank, GeneratedBank, require_patterns
from metaprune.methods.pruningnet.closed_form import ClosedFormSupernet
from metaprune.methods.pruningnet.config import PruningNetConfig
from metaprune.methods.pruningnet.structure_search import StructureSearch
from metaprune.methods.pruningnet.supernet import Scorer, Supernet, SupernetLoss
from metaprune.objective.batch import batch_size_of
from metaprune.protocol.artifact import Artifact, found_or_fitted, plain
from metaprune.protocol.method import BaseMethod, PruneTask
from metaprune.protocol.options import AT_RUN_TIME, fitted_options
from metaprune.recover.config import RecoverKind
from metaprune.search.allocate import require_table
from metaprune.search.encoding import BudgetSampler, WidthEncoding
from metaprune.search.study import best_within
from metaprune.search.url import JOURNAL, parsed_url
from metaprune.train.loop import train
from metaprune.train.require import require_trainable
from metaprune.values import Budget, Plan, Proposal, Trial

log = logging.getLogger("metaprune")

_SPLIT = "split.validation"


@dataclass(frozen=True, kw_only=True)
class PruningNet(PruningNetConfig, BaseMethod):
    """Meta-trains weights for all structures at once, then searches with them; nothing is fine-tuned in the search."""

    fitted: Artifact | None = field(default=None, repr=False, metadata=AT_RUN_TIME)
    """Set by `restore`."""

    def require_feasible(self, task: PruneTask, budget: Budget) -> None:
        """See `metaprune.protocol.method.require_feasible`: the grid decides what can be reached."""
        require_table(budget, task.network.cost_model())
        # widths alone: which channels stay is no matter
        codec = WidthEncoding(task.network.space, task.constraints, self.grid)
        BudgetSampler(codec, task.network.cost_model(), budget.bounds(task.network.cost()), self.search.tolerance)
        if self.storage is not None and not self.storage.startswith(JOURNAL):
            parsed_url(self.storage)
        if self.fitted is None and self.artifact is not None:
            Artifact.load(self.artifact, self.name)
        elif self.fitted is None and task.data is not None:  # what the fit will ask for
            training, _, _ = self._split(task.data)
            if self.weights != "closed-form":
                require_trainable(dataclasses.replace(task.data, train=training), self.train)
            if self.weights == "generated":
                require_patterns(task.network, self.blocks, self.hidden_of)

    def recovery(self, kind: RecoverKind) -> RecoverKind:
        """See `metaprune.protocol.method.recovery_after`: `auto` is the paper's training from scratch.

        Raises:
            ConfigError: training from scratch after `inherit`.
        """
        if self.hands_over and kind == "scratch":
            raise ConfigError(
                "inherit=True and weights='closed-form' hand over weights, which recover='scratch' throws away: take "
                "finetune or distil, or inherit=False"
            )
        if kind in ("finetune", "distil") and not self.hands_over:
            warnings.warn(
                f"recover={kind!r} goes on from the given network's cut weights, which the search never scored; "
                "'scratch' is the paper's, inherit=True hands over the PruningNet's",
                stacklevel=4,
            )
        if kind == "auto":
            return "none" if self.hands_over or self.weights == "closed-form" else "scratch"
        return kind

    # ------------------------------------------------------------------------------------------ meta-training

    def fit(self, tasks: Sequence[PruneTask], rng: Rng) -> Artifact:
        """Train the PruningNet of one network; resumable where the task has a folder.

        Raises:
            ConfigError: more than one task. PlanError: nothing can be pruned. DataError: too few images.
        """
        if len(tasks) != 1:
            raise ConfigError(f"a PruningNet is of one network and one data set; got {len(tasks)} tasks")
        task = tasks[0]
        data = task.require_data(self.name)
        codec = self._codec(task, rng)
        training, _, held = self._split(data)
        tensors, trained = {}, {}
        if self.weights != "closed-form":
            tensors, trained = self._trained(task, codec, training, rng)
        info = {
            "space": task.network.space.digest(),
            "constraints": plain(task.constraints),
            "options": self._fit_options(),
            "data": data.name,
            **self._origin(task),
            "seed": [rng.seed, *rng.path],
            "split": {"sub_training": len(training), "sub_validation": "data.val" if held is None else len(held)},
            "genes": len(codec.genes),
            **trained,
        }
        for g, order in enumerate(codec.order):
            tensors[f"order.{g}"] = torch.from_numpy(order.copy())
        if held is not None:
            tensors[_SPLIT] = torch.from_numpy(held)
        return Artifact(self.name, tensors, info)

    def _trained(
        self, task: PruneTask, codec: WidthEncoding, training: Split, rng: Rng
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Meta-train; the supernet's tensors, and what the artifact says of it."""
        device, data = device_of(task.network.model), task.require_data(self.name)
        with rng.child("init").torch_global():
            supernet = self._supernet(task, codec).to(device)
        history = train(
            supernet,
            dataclasses.replace(data, train=training, val=NO_SAMPLES),
            self.train,
            rng=rng.child("fit"),
            device=device,
            loss=SupernetLoss(data.require_objective(), self.train.label_smoothing, self.distil),
            checkpoint_dir=None if task.folder is None else task.folder / "checkpoints" / "fit",
            progress=task.progress,
            label="fit",
            identity={"pruningnet": self._fit_options()},
        )
        info = {
            "parameters": sum(p.numel() for p in supernet.parameters()),
            "history": history.to_dict(),
            "seconds": sum(row.seconds for row in history.rows),
            "macs": self._fit_macs(task, supernet, len(training), rng),
        }
        return {n: t.detach().cpu() for n, t in supernet.state_dict().items()}, info

    def restore(self, artifact: Artifact) -> Self:
        return dataclasses.replace(self, fitted=artifact)

    def _fit_options(self) -> dict[str, Any]:
        return plain({name: plain(getattr(self, name)) for name in fitted_options(self)})

    def _fit_macs(self, task: PruneTask, supernet: Supernet, samples: int, rng: Rng) -> float:
        """Expected MACs of meta-training: forward and backward are three forward passes of every drawn structure."""
        costs, codec = task.network.cost_model(), supernet.codec
        random = codec.random(1000, rng.child("macs").numpy()) if supernet.by_cost is None else supernet.by_cost
        mean = float(costs.metric("macs", codec.widths(random)).mean())
        drawn = mean
        if self.sampling == "sandwich":
            ends = costs.metric("macs", codec.widths(np.stack([codec.full, codec.smallest])))
            drawn = float(ends.sum()) + (self.structures - 2) * mean
        return 3 * drawn * samples * self.train.epochs

    # ------------------------------------------------------------------------------------------ searching

    def propose(self, task: PruneTask, budget: Budget, rng: Rng) -> Proposal:
        """Fit if nothing was fitted, search under `budget`, return the best structure.

        Raises:
            InfeasibleBudgetError: before anything is trained. SearchError: the storage cannot be used.
        """
        task.require_data(self.name)
        self.require_feasible(task, budget)
        if task.allocator(budget).full_network_fits:
            return Proposal(Plan())
        bounds = budget.bounds(task.network.cost())
        artifact = self._artifact(task, rng)
        session = self.session(task, artifact)
        candidates = session.search([bounds], rng)
        best = best_within(candidates, task.network.cost_model(), bounds)
        if best is None:  # greedy came to its end above the budget
            raise ConfigError("the search ended without a structure within the budget; use searcher='evolution'")
        widths = np.array(best.widths)
        weights = session.scorer.full_size(widths) if self.hands_over else None
        trials = tuple(Trial(c.widths, {"load": c.load}, c.score) for c in candidates if c.whole)
        return Proposal(session.codec.plan(widths), weights, trials, session.report(candidates, best, budget))

    def session(self, task: PruneTask, artifact: Artifact) -> StructureSearch:
        """Restore a fitted PruningNet on its network, ready to score structures.

        Raises:
            ConfigError: the artifact is of another network, or of data without the held-out images.
        """
        origin = self._origin(task)  # held-out images are indices: of other data they would be images that were seen
        artifact.require(space=task.network.space.digest(), constraints=plain(task.constraints), **origin)
        data = task.require_data(self.name)
        with artifact.understood():
            made = from_dict(type(self), artifact.info["options"])
            order = [artifact.tensors[f"order.{g}"].numpy() for g in range(len(task.network.space))]
            for group, positions in zip(task.network.space, order, strict=True):
                _require_permutation(positions, group.width)
            codec = WidthEncoding(task.network.space, task.constraints, made.grid, order)
            training, validation, _ = made._split(data, artifact.tensors.get(_SPLIT))
            if made.weights == "closed-form":
                calibration = calibrate(task.network, training, samples=self.calibration)
                supernet = ClosedFormSupernet(task.network, codec, calibration)
            else:
                supernet = made._restored(task, codec, artifact)
        device = device_of(task.network.model)
        calibration = _calibration(training, self.calibration, self.batch_size, device)
        with replayed(validation, Rng(0).child("validation")):
            scored = list(validation.batches(min(self.batch_size, len(validation)), device=device))
        scorer = Scorer(supernet, calibration, scored, data.require_objective(), self.score)
        return StructureSearch(self, task, artifact, codec, scorer)

    # ------------------------------------------------------------------------------------------ parts

    def _artifact(self, task: PruneTask, rng: Rng) -> Artifact:
        return found_or_fitted(
            self.name,
            self.artifact if self.fitted is None else self.fitted,
            task.folder,
            lambda: {"options": self._fit_options(), "seed": [rng.seed, *rng.path], **self._origin(task)},
            lambda: self.fit([task], rng),
        )

    def _origin(self, task: PruneTask) -> dict[str, str]:
        """What an artifact was made from, besides options."""
        data = task.require_data(self.name)
        return {"data_digest": data.digest, "network_weights": tensors_digest(task.network.tensors)}

    def _codec(self, task: PruneTask, rng: Rng) -> WidthEncoding:
        order = None
        if self.channels == "magnitude":
            scores = Magnitude(p=1).scores(task, Plan(), rng)
            order = [np.argsort(-s, kind="stable") for s in scores]
        return WidthEncoding(task.network.space, task.constraints, self.grid, order)

    def _supernet(self, task: PruneTask, codec: WidthEncoding) -> Supernet:
        if self.weights == "shared":
            bank = Bank(task.network, self.norm_affine)
        else:
            bank = GeneratedBank(
                task.network,
                codec,
                hidden=self.hidden,
                hidden_of=self.hidden_of,
                rank=self.rank,
                blocks=self.blocks,
                from_network=self.start == "network",
                norm_affine=self.norm_affine,
            )
        return Supernet(task.network, codec, bank, self.sampling, self.structures)

    def _restored(self, task: PruneTask, codec: WidthEncoding, artifact: Artifact) -> Supernet:
        with Rng(0).torch_global():  # what it draws is overwritten at once
            supernet = self._supernet(task, codec).to(device_of(task.network.model))
        state = {n: t for n, t in artifact.tensors.items() if n != _SPLIT and not n.startswith("order.")}
        supernet.load_state_dict(state)
        _require_finite(state)
        return supernet

    def _split(self, data: Data, held: Tensor | None = None) -> tuple[Split, Split, np.ndarray | None]:
        """Sub-training, sub-validation and the latter's indices in the training split.

        A user's DataLoader cannot be split: its own validation part then scores the structures.
        """
        split: Any = data.train
        if not (hasattr(split, "subset") and hasattr(split, "labels")):
            warnings.warn(
                "loaders and datasets are not split: their validation part scores the structures, so accuracy on it is "
                "of images that chose the structure; give a test part, (train, val, test), to judge by",
                stacklevel=3,
            )
            return data.train, data.val, None
        if held is None:
            half = len(split) // 2
            count = min(5000, half) if self.sub_validation is None else self.sub_validation
            if not max(1, data.num_classes) <= count <= half or len(split) - count < 2:
                raise DataError(
                    f"{data.name} has {len(split)} training images: too few to hold out {count} that score structures. "
                    f"Half ({half}) may be held out, and each of {data.num_classes} classes needs one: give more "
                    "images, or another sub_validation"
                )
            labels = np.asarray(split.labels)
            chosen = hold_out(labels, count / len(split), SPLIT_RNG.child("sub-validation"))
        else:
            chosen = held.numpy()
            if (
                chosen.ndim != 1
                or len({*chosen.tolist()}) != len(chosen)
                or not 0 <= chosen.min() <= chosen.max() < len(split)
            ):
                raise ValueError("held-out images that the training split does not have")
        return split.subset(without(len(split), chosen)), split.subset(chosen), chosen


def _require_permutation(positions: np.ndarray, width: int) -> None:
    if not np.array_equal(np.sort(positions), np.arange(width)):
        raise ValueError(f"an order that is none of {width} channels")


def _require_finite(tensors: Mapping[str, Tensor]) -> None:
    if bad := [n for n, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]:
        raise ValueError(f"NaN or infinity in {', '.join(bad[:4])}")


def _calibration(split: Split, count: int, batch_size: int, device: torch.device) -> list[Any]:
    """`count` samples as batches on the device, always the same ones, of all classes, without augmentation."""
    batches, seen, rng = [], 0, Rng(0).child("calibration")
    with replayed(split, rng):
        for batch in split.batches(min(batch_size, count, len(split)), device=device, rng=rng):
            if batch_size_of(batch[0]) > 1:  # one sample has no variance
                batches.append(batch)
            seen += batch_size_of(batch[0])
            if seen >= count:
                break
    return batches
