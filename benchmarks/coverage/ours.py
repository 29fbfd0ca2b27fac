"""What is measured of metaprune on one network. Every figure is written as soon as it is known."""

from __future__ import annotations

import re
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from masked_original import original_error
from process import first_line, memory, silenced, tail
from torch import nn

import metaprune.tracing as tracing_module
from metaprune.core.errors import UncoveredOpWarning
from metaprune.network import Network
from metaprune.surgery import cut
from metaprune.surgery.keep_module import ModuleRules, module_rules
from metaprune.surgery.verify import TOLERANCE
from metaprune.testing import counted_macs, random_plan
from metaprune.tracing import trace
from metaprune.values import Constraints
from networks import NETWORKS, build

SEEDS = {0.3: 3, 0.5: 5, 0.9: 9}  # keep ratio -> seed of the plan
Row = dict[str, Any]


def measure(name: str, row: Row, save: Callable[[], None], keeps: tuple[float, ...] = tuple(SEEDS)) -> None:
    """Fills `row`; stops at the first thing that everything after it needs."""
    model, args, kwargs = build(name)
    own_bytes = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    row |= {"params": sum(p.numel() for p in model.parameters()), "model_bytes": own_bytes}
    warm_up()
    with torch.no_grad():
        start = time.process_time()
        try:
            model(*args, **kwargs)
        except Exception as error:
            row["does_not_run"] = first_line(error)  # the network, here: no fault of any tool
            return
        row["eager_cpu_s"] = time.process_time() - start
    before = memory()
    row["memory"] = {"eager": before}
    save()
    network = traced(name, model, args, kwargs, row)
    if network is None:
        return
    row["memory"]["traced"] = memory()
    describe(network, row)
    save()
    row["graph"] = {}
    for keep in sorted(keeps, key=lambda k: k != 0.5):  # 0.5 first: its time and memory are those that are reported
        row["graph"][str(keep)] = graph_form(network, keep)
        if keep == 0.5:
            row["memory"]["cut"] = memory()
        save()
    peak = row["memory"]["cut"]["peak_bytes"]
    row["peak_bytes"], row["peak_rise_bytes"] = peak, peak - before["resident_bytes"]
    row["peak_rise_over_model"] = row["peak_rise_bytes"] / own_bytes
    row["module_free"] = module_form(network, 0.5, ModuleRules())
    save()
    if name.startswith("outside:"):
        row["second_judge"] = judged_again(network, 0.5)
        row["explained"] = reasons(network)
        if row["prunable_share"] < 1:  # held by an output, or by something else?
            options = {**NETWORKS[name].trace, "free_outputs": True}
            row["prunable_share_free"] = shares(trace(model, args, kwargs, **options))["prunable_share"]
        save()


def measure_rules(name: str, row: Row, save: Callable[[], None], keeps: tuple[float, ...] = tuple(SEEDS)) -> None:
    """`keep_module=True`: what it leaves to shrink, and the module form under its rules."""
    network = traced(name, *build(name), {})
    if network is None:
        return
    start = time.process_time()
    with silenced():
        rules = module_rules(network)
    row["rules"] = {"why": rules.why, "ties": len(rules.ties), "whole": len(rules.whole)}
    row["rules"] |= {"cpu_s": time.process_time() - start, "prunable_share": shares(network, rules)["prunable_share"]}
    row["module_rules"] = {}
    for keep in keeps:
        row["module_rules"][str(keep)] = module_form(network, keep, rules)
        save()


def warm_up() -> None:
    """Imports that the first export does (symbolic shapes and others) belong to no network's time or memory."""
    with silenced():
        tiny = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4)).eval()
        network = trace(tiny, torch.randn(2, 3, 3, 3))
        counted_macs(cut(network, random_plan(network.space, 0.5, 0)).model, torch.randn(2, 3, 3, 3))


def traced(name: str, model: nn.Module, args: tuple, kwargs: dict, row: Row) -> Network | None:
    """`trace`, its time split into capture and analysis (labels and space)."""
    spent: list[float] = []
    capture = tracing_module.capture

    def timed(*a: Any, **k: Any) -> Any:
        start = time.process_time()
        try:
            return capture(*a, **k)
        finally:
            spent.append(time.process_time() - start)

    tracing_module.capture = timed
    start = time.process_time()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            network = trace(model, args, kwargs, **NETWORKS[name].trace)
    except Exception as error:
        row |= {"captured": False, "error": first_line(error), "traceback": tail(error)}
        return None
    finally:
        tracing_module.capture = capture
        row["capture_cpu_s"] = sum(spent)
        row["analysis_cpu_s"] = time.process_time() - start - sum(spent)
    row["captured"] = True
    row["warnings"] = sorted({str(w.message) for w in caught if issubclass(w.category, UncoveredOpWarning)})
    return network


def describe(network: Network, row: Row) -> None:
    space = network.space
    row["nodes"] = len(list(network.captured.graph.nodes))
    row["batch_dynamic"] = network.captured.varies
    row["not_recorded"] = network.captured.not_recorded
    row |= {"groups": len(space), "channels": int(space.widths.sum()) if len(space) else 0}
    row |= {"one_atom_groups": len(space.stuck), "over_merged": space.over_merged}
    row["one_atom_names"] = [g.name for g in space.stuck][:8]
    row["uncovered"] = dict(Counter(u.op for u in network.uncovered))
    row["inexact"] = list(network.cost_model(2).inexact)[:8]
    reasons: Counter[str] = Counter()
    for locked in space.locked:
        reasons[re.sub(r" in [\w.]+( |$)", r"\1", locked.reason)] += locked.locked  # whatever module it is in
    row["lock_reasons"] = reasons.most_common(5)
    row |= shares(network)


def shares(network: Network, rules: ModuleRules | None = None) -> Row:
    """Elements of parameters that the graph uses, and how many of them some cut (under `rules`) can drop."""
    stays = np.zeros(len(network.labelled.atoms), dtype=bool)
    for group in rules.whole if rules else ():
        stays[network.space[group].atoms] = True
    used_names = {
        network.captured.sources[n.name]
        for n in network.captured.graph.nodes
        if n.op == "placeholder" and n.users and n.name in network.captured.sources
    }
    used = prunable = unused = 0
    least: list[tuple[int, str]] = []  # what is locked, the largest first
    for name, tensor in network.tensors.items():
        if not isinstance(tensor, nn.Parameter):
            continue
        if name not in used_names:
            unused += tensor.numel()
            continue
        labels = network.labelled.parameters.get(name) or [None] * tensor.dim()
        locked = 1
        for label, size in zip(labels, tensor.shape, strict=True):
            final = None if label is None else network.labelled.atoms.final(label)
            locked *= size if final is None else int(((final < 0) | stays[final]).all(axis=1).sum())
        used += tensor.numel()
        prunable += tensor.numel() - locked
        least.append((locked, name))
    least.sort(reverse=True)
    return {
        "used_params": used,
        "unused_params": unused,
        "prunable_share": prunable / used if used else 0.0,
        "largest_locked": [(name, locked) for locked, name in least[:5] if locked],
    }


def graph_form(network: Network, keep: float) -> Row:
    """Cut to `keep` of every group, proved; MACs by the cost model against those the dispatcher counts."""
    found: Row = {"proved": False}
    plan = random_plan(network.space, keep, SEEDS[keep])
    start = time.process_time()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pruned = cut(network, plan, form="graph")
    except Exception as error:
        return {**found, "reason": first_line(error), "traceback": tail(error)}
    finally:
        found["cut_cpu_s"] = time.process_time() - start
    found |= {"proved": pruned.error is not None and pruned.error <= TOLERANCE, "error": pruned.error}
    start = time.process_time()
    cut(network, plan, form="graph", verify=False)
    found["cut_unproved_cpu_s"] = time.process_time() - start
    found["warnings"] = sorted({w.category.__name__ for w in caught if w.category.__module__.startswith("metaprune")})
    args, kwargs = network.captured.example
    leaves = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    try:
        cost = network.cost(plan, batch=int(leaves[0].shape[0]))
        found["params_kept"] = cost.params
        found["params_equal"] = cost.params == sum(p.numel() for p in pruned.model.parameters())
        with silenced(), torch.random.fork_rng(devices=[]):
            counted = counted_macs(pruned.model, *args, **kwargs)
        found |= {"macs": int(cost.macs), "macs_counted": int(counted), "macs_equal": int(cost.macs) == int(counted)}
        if not network.cost_model(int(leaves[0].shape[0])).inexact:
            widths = plan.widths(network.space)
            found["cost_of_widths_equal"] = bool(np.all(network.cost(widths, batch=int(leaves[0].shape[0])) == cost))
    except Exception as error:
        found |= {"macs_equal": False, "macs_reason": first_line(error), "traceback": tail(error)}
    return found


def judged_again(network: Network, keep: float) -> Row:
    """What is handed over by default, compared with the user's own module under zeros (see masked_original.py)."""
    try:
        with silenced():
            pruned = cut(network, random_plan(network.space, keep, SEEDS[keep]))
            return {"form": pruned.form, "unproved": pruned.unproved, "error": original_error(network, pruned)}
    except Exception as error:
        return {"reason": first_line(error), "traceback": tail(error)}


def reasons(network: Network) -> list[str]:
    """The lines of `explain()` that say why something stays, each reason once."""
    said = re.findall(r"not prunable: .*|locked: .*|no rule for .*|outputs whose width is held: .*", network.explain())
    return list(dict.fromkeys(line.strip() for line in said))[:8]


def module_form(network: Network, keep: float, rules: ModuleRules) -> Row:
    """The user's own class, at free widths or under the rules that its forward needs."""
    start = time.process_time()
    plan = random_plan(network.space, keep, SEEDS[keep], rules.applied_to(Constraints()))
    found: Row = {"macs_kept": network.cost(plan).macs / max(network.cost().macs, 1)}
    try:
        with silenced():
            pruned = cut(network, plan, form="module")
    except Exception as error:
        return {**found, "proved": False, "reason": first_line(error), "cpu_s": time.process_time() - start}
    return {**found, "proved": True, "why": pruned.why, "cpu_s": time.process_time() - start}
