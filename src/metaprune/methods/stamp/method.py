"""STAMP: read a data set, emit its mask on a network that was meta-trained for it, adapt for a few steps, cut.

Rapid Structural Pruning of Neural Networks with Set-based Task-Adaptive Meta-Pruning, Song et al., arXiv 2006.12139,
2020. Only its abstract could be read; it fixes: a network pretrained once, a structured mask generated from the target
set, a generator meta-learned over subsets of a reference set, a few gradient steps on unseen data. All below that level
(encoder, gates, cost term, Reptile, figures) is ours.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from metaprune.core.errors import CollapseWarning, ConfigError, DataError, InfeasibleBudgetError
from metaprune.core.files import tensors_digest
from metaprune.core.read import read_json
from metaprune.core.rng import Rng
from metaprune.core.strict import from_dict
from metaprune.cost.soft import SoftCost
from metaprune.data import load_data
from metaprune.methods.gating.training import Price, TrainableTensors, asked_share, gradient_steps, sgd
from metaprune.methods.stamp.channels import Channels
from metaprune.methods.stamp.closed_form import from_statistics
from metaprune.methods.stamp.config import HEAD_LR, StampConfig
from metaprune.methods.stamp.episodes import Pool
from metaprune.methods.stamp.generator import MaskGenerator
from metaprune.methods.stamp.headroom import measure
from metaprune.methods.stamp.learner import Learner
from metaprune.methods.stamp.meta import MetaState, conditioning, fill_bank, meta_train, middle
from metaprune.methods.stamp.pairs import Pairs
from metaprune.methods.stamp.reader import Head
from metaprune.protocol.artifact import Artifact, found_or_fitted, plain
from metaprune.protocol.method import BaseMethod, PruneTask, require_within
from metaprune.protocol.options import AT_RUN_TIME, fitted_options
from metaprune.train.engine import engine
from metaprune.train.processes import Processes
from metaprune.values import Budget, Plan, Proposal

_LEAST_MARGIN = 0.02  # in Jaccard, of masks of one task over masks of different tasks


@dataclass(frozen=True, kw_only=True)
class Stamp(StampConfig, BaseMethod):
    """Meta-trains a mask generator and the weights it masks, then fits both to a data set in a few steps."""

    fitted: Artifact | None = field(default=None, repr=False, metadata=AT_RUN_TIME)
    """Set by `restore`."""

    def require_feasible(self, task: PruneTask, budget: Budget) -> None:
        """See `metaprune.protocol.method.require_feasible`; before a meta-training, of its data too."""
        self._form(task).slack(budget)
        if self.reads_statistics:
            Pool(task.require_data(self.name), task.network.device)
            Head.of(task.network)
            return
        if self.artifact is not None and self.fitted is None:
            self._as_fitted(task, Artifact.load(self.artifact, self.name))
        if self.artifact is None and self.fitted is None:
            self._pools(task)
            SoftCost(task.network.cost_model(), self.metric)  # raises for milliseconds without a table

    def _form(self, task: PruneTask) -> Channels | Pairs:
        """What has gates."""
        return Pairs(task) if self.variant == "filter" else Channels(task)

    # ------------------------------------------------------------------------------------------ meta-training

    def fit(self, tasks: Sequence[PruneTask], rng: Rng) -> Artifact:
        """Meta-train on the tasks' data sets, all on the network of the first; resumable where it has a folder.

        Launched as several processes (`accelerate launch`, `torchrun`), each takes its share of every batch.

        Raises:
            ConfigError: tasks of different networks, or several processes on one GPU.
            DataError: a data set without classes to choose from.
        """
        task = tasks[0]
        digest = task.network.space.digest()
        if any(t.network.space.digest() != digest for t in tasks):
            raise ConfigError("stamp meta-trains one network on several data sets: all tasks share the network")
        device = task.network.device
        pools = self._pools(*tasks)
        data = [pool.data for pool in pools]
        gain = self._headroom(task, pools, rng.child("headroom"))
        learner = self._learner(task, rng, task.network.tensors)
        fill_bank(learner, pools, self.meta, rng.child("bank"))
        heads = [learner.weights(task.network.tensors, len(p.classes)).head for p in pools]
        state = MetaState(learner.generator, _own(task, learner.head), learner.gates, heads)
        identity = {
            "stamp": self._fit_options(),
            "space": digest,
            "data": [[d.name, d.digest] for d in data],
            "weights": tensors_digest(task.network.tensors),
            "seed": [rng.seed, *rng.path],
            **self._form(task).identity,
        }
        with engine(self.meta.mixed_precision, device) as accelerator:
            processes = Processes(accelerator, device)
            price = Price(self.strength, 1.0, self.kl_weight, self.logit_decay)
            rows = meta_train(
                learner,
                state,
                pools,
                self.meta,
                rng,
                price=price,
                folder=None if task.folder is None else task.folder / "checkpoints" / "stamp",
                identity=identity,
                progress=task.progress,
                processes=processes,
            )
        variety = self._conditioning(learner, pools, rng.child("conditioning"))
        steps = self.meta.episodes * self.meta.inner_steps
        passes = 3.0 + processes.count  # forward and backward of the batch, which every process reads whole
        macs = steps * self.meta.batch_size * passes * task.network.cost().macs
        info = {
            **{k: v for k, v in identity.items() if k != "stamp"},
            "options": self._fit_options(),
            "shape": list(data[0].input_shape),
            "conditioning": variety,
            "headroom": gain,
            "history": rows.to_dict(),
            "macs": macs,
            "processes": processes.count,
            "parameters": sum(p.numel() for p in learner.generator.parameters()),
            "seconds": rows.seconds,
        }
        return Artifact(self.name, _learned_tensors(task, learner, state), info)

    def restore(self, artifact: Artifact) -> Self:
        return dataclasses.replace(self, fitted=artifact)

    def _pools(self, *tasks: PruneTask) -> list[Pool]:
        """The tasks' data sets and the references. Raises DataError for one without classes to choose from."""
        data = [*(t.require_data(self.name) for t in tasks), *self._more(tasks[0])]
        return [Pool(domain, tasks[0].network.device) for d in data for domain in (d.domains or (d,))]

    def _more(self, task: PruneTask) -> list[Any]:
        shape = task.require_data(self.name).input_shape
        return [load_data(spec, image_size=shape[1], channels=shape[0]) for spec in self.references]

    def _fit_options(self) -> dict[str, Any]:
        options = {name: plain(getattr(self, name)) for name in fitted_options(self)}
        if self.variant == "filter":  # an artifact that does not say is of channels
            options["variant"] = self.variant
        return plain(options)

    def _headroom(self, task: PruneTask, pools: Sequence[Pool], rng: Rng) -> dict[str, Any] | None:
        """What masks of a domain's own gain, see `headroom.measure`; warns where they gain nothing sure."""
        if not self.headroom or len(pools) < 2 or self.variant == "filter":
            return None
        found = measure(task, [pool.data for pool in pools], middle(self.shares), self.metric, rng)
        if not found["pays"]:
            warnings.warn(found["verdict"], CollapseWarning, stacklevel=3)
        return found

    def _conditioning(self, learner: Learner, pools: Sequence[Pool], rng: Rng) -> dict[str, Any]:
        """How alike masks are, see `meta.conditioning`; warns where they do not depend on the data set, and could."""
        figures = conditioning(learner, pools, self.meta, rng)
        collapsed = figures["margin"] < _LEAST_MARGIN
        if (self.use_set or self.use_activations) and collapsed:
            same, other = figures["jaccard_same"], figures["jaccard_different"]
            warnings.warn(
                f"the mask generator gives every data set about the same mask (Jaccard {same:.3f} within, {other:.3f} "
                "between tasks): what it learned is a good fixed mask. More varied references=[...], a lower "
                "generator_lr or more episodes may help",
                CollapseWarning,
                stacklevel=3,
            )
        return {**figures, "collapsed": collapsed}

    # ------------------------------------------------------------------------------------------ a target data set

    def propose(self, task: PruneTask, budget: Budget, rng: Rng) -> Proposal:
        """Adapt to `task.data` for `adapt_steps`, freeze the mask within `budget`, hand over the adapted weights.

        Raises:
            InfeasibleBudgetError: no structure meets the budget, or with freeze="threshold" the generator's does not.
            ConfigError: an artifact of another network. DataError: one class, or data that cannot be indexed.
        """
        data, form = task.require_data(self.name), self._form(task)
        slack = form.slack(budget)
        pool = Pool(data, task.network.device)
        if slack:
            return Proposal(Plan())
        if self.reads_statistics:
            plan, new = from_statistics(task, budget, rng.child("statistics"))
            figures = {
                **self._outcome(task, plan),
                "kept": np.flatnonzero(np.concatenate(plan.masks(task.network.space))).tolist(),
                "adaptation": [],
            }
            return Proposal(plan, None if self.variant == "structure" else new, details={"stamp": figures})
        artifact = self._artifact(task, rng)
        made = self._as_fitted(task, artifact)
        learner, weights = made._restored(task, artifact, data.num_classes)
        rng = rng.child("adapt")
        began = time.perf_counter()
        price = made._price(task, budget)
        rows = made._adapt(learner, weights, pool, price, rng)
        adapted = time.perf_counter()
        samples = [
            pool.draw(pool.classes, made.meta.batch_size, rng.child("set", i), augment=made.meta.augment, relabel=False)
            for i in range(self.sets)
        ]
        probabilities = learner.probabilities(samples, price.target)
        seconds = {"adapt": adapted - began, "encode": time.perf_counter() - adapted}
        proposal = form.best(budget, probabilities) if self.freeze == "budget" else form.above(0.5, probabilities)
        require_within(task, budget, proposal, _exceeded)
        figures = made._report(task, artifact, proposal.plan) | form.figures(proposal, probabilities)
        details = {**proposal.details, "stamp": figures | {"seconds": seconds, "adaptation": rows}}
        new = None if self.variant == "structure" else {n: t.detach() for n, t in weights.tensors().items()}
        return dataclasses.replace(proposal, weights=new, details=details)

    def _report(self, task: PruneTask, artifact: Artifact, plan: Plan) -> dict[str, Any]:
        full = float(task.network.cost().macs)
        samples = self.meta.batch_size
        return {
            "macs": {"adapt": self.adapt_steps * samples * 4 * full, "encode": self.sets * samples * full},
            "meta_training": {k: artifact.info[k] for k in ("macs", "seconds", "conditioning", "history")},
            **self._outcome(task, plan),
        }

    def _outcome(self, task: PruneTask, plan: Plan) -> dict[str, Any]:
        """What the report says of any plan: the share of the MACs that is left, and the targets before this one."""
        share = float(task.network.cost(plan).macs) / float(task.network.cost().macs)
        return {"kept_macs": share, "targets": self._targets(task)}

    def _targets(self, task: PruneTask) -> list[dict[str, Any]]:
        """What the artifact was adapted to before, from the records beside it: the report compares with them."""
        targets = []
        for path in sorted(Path(self.artifact).glob("targets/*/record.json")) if self.artifact else ():
            with suppress(DataError):  # the report compares with those that can be read
                record = read_json(path, remedy="run its command again")
                kept_channels = ((record.get("method_details") or {}).get(self.name) or {}).get("kept")
                if kept_channels is not None and (task.folder is None or path.parent != task.folder):
                    targets.append(
                        {k: record.get(k) for k in ("data", "budget", "cost", "quality")} | {"kept": kept_channels}
                    )
        return targets

    def _price(self, task: PruneTask, budget: Budget) -> Price:
        """Asks for the budget's share, if it bounds the metric that the gates pay for."""
        share = asked_share(task.network, budget, self.metric, middle(self.shares))
        low, high = self.shares
        if self.metric not in budget.to_dict():
            warnings.warn(
                f"the budget does not bound {self.metric}, which the artifact was meta-trained for: its generator is "
                f"asked for {share:.0%} of them whatever the budget is",
                stacklevel=4,
            )
        elif not 0.9 * low <= share <= 1.1 * high:
            warnings.warn(
                f"the artifact was meta-trained for {low:.0%} to {high:.0%} of the network's {self.metric}, this is "
                f"{share:.1%}: fit one with shares=[...] around it",
                stacklevel=4,
            )
        return Price(self.strength, share, self.kl_weight, self.logit_decay)

    def _adapt(
        self, learner: Learner, weights: TrainableTensors, pool: Pool, price: Price, rng: Rng
    ) -> list[dict[str, float]]:
        optimisers = (
            sgd(weights, self.meta.lr, HEAD_LR),
            torch.optim.Adam(learner.generator.parameters(), lr=self.meta.generator_lr),
        )
        steps = [rng.child("step", step) for step in range(self.adapt_steps)]
        drawn = (
            (
                pool.draw(
                    pool.classes, self.meta.batch_size, inner.child("sample"), augment=self.meta.augment, relabel=False
                ),
                inner.child("gates"),
            )
            for inner in steps
        )
        return gradient_steps(learner, weights, optimisers, drawn, price, self.meta.mixed_precision)

    # ------------------------------------------------------------------------------------------ parts

    def _learner(self, task: PruneTask, rng: Rng, reference: Any) -> Learner:
        form = self._form(task)

        def generator(widths: Sequence[int], tapped: set[int], features: int) -> MaskGenerator:
            with rng.child("generator").torch_global():
                return form.generator(
                    widths,
                    tapped,
                    features,
                    dim=self.set_dim,
                    heads=self.heads,
                    hidden=self.hidden,
                    encoder=self.encoder,
                    prior=self.prior,
                    use_set=self.use_set,
                    use_activations=self.use_activations,
                    keep=self.keep,
                    shares=self.shares,
                )

        return form.learner(task.network, generator, reference, self.metric, self.temperature)

    def _artifact(self, task: PruneTask, rng: Rng) -> Artifact:
        """A new one is meta-trained on the task's own data."""

        def expected() -> dict[str, Any]:
            data = [task.require_data(self.name), *self._more(task)]
            origin = [[d.name, d.digest] for d in data]
            return {"options": self._fit_options(), "seed": [rng.seed, *rng.path], "data": origin}

        given = self.artifact if self.fitted is None else self.fitted
        return found_or_fitted(self.name, given, task.folder, expected, lambda: self.fit([task], rng))

    def _as_fitted(self, task: PruneTask, artifact: Artifact) -> Stamp:
        """This method with the options that the artifact was fitted with.

        Raises:
            ConfigError: the artifact is of another network, or of gates of another form. DataError: of samples with
            other channels.
        """
        artifact.require(space=task.network.space.digest())
        with artifact.understood():
            shape = artifact.info["shape"]
            fitted = from_dict(Stamp, dict(artifact.info["options"]), "stamp")
        here = list(task.require_data(self.name).input_shape)
        if shape[:1] != here[:1]:
            raise DataError(
                f"the artifact was fitted on samples of shape {shape}, these are {here}: set data.channels={shape[0]}"
            )
        if "filter" in (self.variant, fitted.variant) and self.variant != fitted.variant:
            has = "filter pairs" if fitted.variant == "filter" else "channels"
            raise ConfigError(
                f"the artifact has gates of {has}, and stamp.variant={self.variant!r} needs others: set it to "
                f"{fitted.variant!r}, or run `metaprune fit` with variant={self.variant!r}, into another folder"
            )
        return dataclasses.replace(self, **{name: getattr(fitted, name) for name in fitted_options(self)})

    def _restored(self, task: PruneTask, artifact: Artifact, classes: int) -> tuple[Learner, TrainableTensors]:
        """The learner as meta-training left it, on the target's network, with a head for the target.

        Weights start between the pretrained and the meta-trained ones: what the references taught costs something of
        what pretraining knew, and half of the way keeps most of both (Wortsman et al., WiSE-FT, CVPR 2022).
        """
        device = task.network.device

        def part(prefix: str) -> dict[str, Tensor]:
            named = artifact.tensors.items()
            return {n.removeprefix(prefix): t.to(device) for n, t in named if n.startswith(prefix)}

        with artifact.understood():
            reference, new = part("reference."), part("network.")
            learner = self._learner(task, Rng(0), {**task.network.tensors, **reference})
            learner.generator.load_state_dict(part("generator."))
            start = {n: torch.lerp(reference[n], t, self.blend) if t.is_floating_point() else t for n, t in new.items()}
            return learner, learner.weights(start, classes)


def _exceeded(over: str, reached: dict[str, float]) -> InfeasibleBudgetError:
    """Of the generator's own mask, at a threshold."""
    return InfeasibleBudgetError(
        f"the generator's own mask exceeds the budget ({over}): use freeze='budget', or fit with a larger strength",
        reached,
    )


def _learned_tensors(task: PruneTask, learner: Learner, state: MetaState) -> dict[str, Tensor]:
    """What an artifact holds: the generator, the meta-trained network, and the network before."""
    tensors = {f"generator.{n}": t.detach().cpu() for n, t in learner.generator.state_dict().items()}
    tensors |= {f"network.{n}": t.detach().cpu().contiguous() for n, t in state.tensors().items()}
    return tensors | {f"reference.{n}": t.detach().cpu().clone() for n, t in _own(task, learner.head).items()}


def _own(task: PruneTask, head: Head) -> dict[str, Tensor]:
    """All tensors of the network but the head's, which is new for every data set."""
    return {n: t.detach() for n, t in task.network.tensors.items() if n not in (head.weight, head.bias)}
