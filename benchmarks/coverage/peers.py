"""Torch-Pruning and torch-kirigami on the same networks, driven by their documentation without work per network.

Success: the pruned model's forward runs, its output shapes are as before, and over 10% of the parameters are gone.
Whether the outputs are right is not asked of them (neither offers a proof).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from networks import NETWORKS, build
from process import first_line, silenced, tail
from torch import nn
from torch.utils import _pytree as pytree

RATIO = 0.5
LEAST_REMOVED = 0.1
HELP = {
    "torch-pruning": (
        "BasePruner, ratio 0.5, round_to=8, group magnitude; layers as wide as the output are in ignored_layers; "
        "num_heads is filled for every q, k, v and qkv layer found, for MultiheadAttention, and from the config of "
        "decoders (whole heads there, as in its LLM example); attention written out (timm's fused attention off, "
        "transformers' attention eager); after pruning hidden_dim, num_heads, head_dim, attn_dim, attention_head_size, "
        "all_head_size and num_key_value_groups are set from the new widths, as in its examples"
    ),
    "torch-kirigami": (
        "DependencyGraph.build, discover_candidates, Greedy(GroupMagnitude(p=2)), ChannelRatio(0.5) for every axis; "
        "where that cannot be met, ParameterBudget of half the parameters"
    ),
}
# names under which attention classes keep the number of heads, and their projections
HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "heads", "n_head")
PROJECTIONS = (
    "qkv", "qkv_proj", "to_qkv", "q", "k", "v", "q_proj", "k_proj", "v_proj", "query", "key", "value", "to_q", "to_k",
    "to_v", "q_lin", "k_lin", "v_lin",
)  # fmt: skip
Pruned = tuple[nn.Module, str]


def measure(tool: str, name: str, row: dict[str, Any], save: Callable[[], None]) -> None:
    """Fills `row`: passed, cpu_s of build and prune, parameters before and after, and the reason of a failure."""
    prune = {"torch-pruning": torch_pruning, "torch-kirigami": kirigami}[tool]
    with silenced():
        tiny = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4)).eval()
        prune(tiny, (torch.randn(2, 3, 3, 3),), {}, free_outputs=False)  # imports belong to no network
        model, args, kwargs = build(name)
        if hasattr(model, "set_attn_implementation") and tool == "torch-pruning":
            model.set_attn_implementation("eager")
        with torch.no_grad():
            before = _shapes(model(*args, **kwargs))
    row |= {"passed": False, "params": _count(model)}
    save()
    free = bool(NETWORKS[name].trace.get("free_outputs"))
    start = time.process_time()
    try:
        with silenced():
            model, row["how"] = prune(model, args, kwargs, free_outputs=free)
    except Exception as error:
        row |= {"reason": first_line(error), "stage": "prune", "traceback": tail(error)}
        return
    finally:
        row["cpu_s"] = time.process_time() - start
        row["params_after"] = _count(model)
        save()
    try:
        with silenced(), torch.no_grad():
            after = _shapes(model.eval()(*args, **kwargs))
    except Exception as error:
        row |= {"reason": f"forward of the pruned model: {first_line(error)}", "stage": "forward"}
        row["traceback"] = tail(error)
        return
    if free:
        before, after = [s[:-1] for s in before], [s[:-1] for s in after]
    if before != after:
        row |= {"reason": f"output shapes changed from {before} to {after}"[:300], "stage": "shapes"}
    elif row["params_after"] > (1 - LEAST_REMOVED) * row["params"]:
        share = 1 - row["params_after"] / row["params"]
        row |= {"reason": f"only {100 * share:.1f}% of the parameters removed", "stage": "too little"}
    else:
        row["passed"] = True


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _shapes(output: Any) -> list[tuple[int, ...]]:
    return [tuple(x.shape) for x in pytree.tree_leaves(output) if isinstance(x, torch.Tensor)]


# --------------------------------------------------------------------------------------------------- Torch-Pruning


def torch_pruning(model: nn.Module, args: tuple, kwargs: dict[str, Any], *, free_outputs: bool) -> Pruned:
    import torch_pruning as tp

    for parameter in model.parameters():  # its tracing follows gradients
        parameter.requires_grad_(True)
    heads = _head_counts(model)
    decoder = getattr(getattr(model, "config", None), "num_key_value_heads", None) is not None
    whole_heads = {"prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": RATIO} if decoder else {}
    pruner = tp.pruner.BasePruner(
        model,
        example_inputs=_example(args, kwargs),
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=RATIO,
        round_to=8,
        ignored_layers=[] if free_outputs else _output_layers(model, args, kwargs),
        num_heads=dict(heads),
        forward_fn=_forward(args),
        **whole_heads,
    )
    for group in pruner.step(interactive=True):
        group.prune()
    _fix_attributes(model, pruner.num_heads)
    return model, "whole heads" if decoder else ""


def _example(args: tuple, kwargs: dict[str, Any]) -> Any:
    """A tensor where there is one, else a dictionary (its own forms of example inputs)."""
    return dict(kwargs) if kwargs else args[0] if len(args) == 1 else list(args)


def _forward(args: tuple) -> Callable[..., Any]:
    """Runs a model on `_example`, in float32 with gradients."""

    def forward(model: nn.Module, example: Any) -> Any:
        return model(**example) if isinstance(example, dict) else model(example) if len(args) == 1 else model(*example)

    return forward


def _output_layers(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> list[nn.Module]:
    """Layers as wide as an output (class-count heads)."""
    with torch.no_grad():
        shapes = _shapes(model(*args, **kwargs))
    widths = {s[i] for s in shapes for i in ((1,) if len(s) != 3 else (1, 2)) if len(s) > 1}
    width = lambda m: getattr(m, "out_features", None) or getattr(m, "out_channels", None)  # noqa: E731
    return [m for m in model.modules() if width(m) in widths and not list(m.children())]


def _head_counts(model: nn.Module) -> dict[nn.Module, int]:
    found: dict[nn.Module, int] = {}
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            found[module] = module.num_heads
            continue
        counts = [getattr(module, a) for a in HEAD_COUNTS if isinstance(getattr(module, a, None), int)]
        config = getattr(module, "config", None)
        if not counts and hasattr(module, "q_proj") and config is not None:
            counts = [config.num_attention_heads]
        for name, child in module.named_children():
            if counts and name in PROJECTIONS and isinstance(child, (nn.Linear, nn.Conv2d)):
                key_value = getattr(config, "num_key_value_heads", None)
                found[child] = key_value if key_value and name in ("k_proj", "v_proj") else counts[0]
    return found


def _fix_attributes(model: nn.Module, heads: dict[nn.Module, int]) -> None:
    """Integers that its examples set by hand after pruning."""
    if hasattr(model, "hidden_dim") and hasattr(model, "conv_proj"):
        model.hidden_dim = model.conv_proj.out_channels
    for module in model.modules():
        children = {n: c for n, c in module.named_children() if c in heads}
        packed = next((n for n in children if "qkv" in n), None)
        first = packed or next((n for n in children if n.lower().startswith(("q", "to_q"))), None)
        if first is None:
            continue
        width = getattr(children[first], "out_features", None) or children[first].out_channels
        count = heads[children[first]]
        total = width // 3 if packed else width
        values = {a: count for a in HEAD_COUNTS}
        values |= {"head_dim": total // count, "attention_head_size": total // count}
        values |= {"all_head_size": total, "attn_dim": total, "inner_dim": total}
        if "k_proj" in children:
            values |= {"num_key_value_groups": count // heads[children["k_proj"]]}
        for attribute, value in values.items():
            if isinstance(vars(module).get(attribute), int):
                setattr(module, attribute, value)


# --------------------------------------------------------------------------------------------------- torch-kirigami


def kirigami(model: nn.Module, args: tuple, kwargs: dict[str, Any], *, free_outputs: bool) -> Pruned:
    from torch_kirigami import DependencyGraph
    from torch_kirigami.pruning import (
        ChannelRatio,
        Greedy,
        GroupMagnitude,
        ParameterBudget,
        PlanningError,
        Pruner,
    )

    graph = DependencyGraph.build(model, args=args, kwargs=kwargs)
    pruner = Pruner(model, graph=graph, preserve_io=not free_outputs)
    space = pruner.discover_candidates()
    strategy = Greedy(GroupMagnitude(p=2))
    try:
        return pruner.prune(space, budget=ChannelRatio(RATIO), strategy=strategy)[0], "ChannelRatio(0.5)"
    except PlanningError as error:
        try:
            budget = ParameterBudget.from_ratio(model, RATIO)
            return pruner.prune(space, budget=budget, strategy=strategy)[0], "ParameterBudget of 50%"
        except PlanningError as second:
            raise PlanningError(f"by channels: {str(error)[:120]}; by parameters: {str(second)[:120]}") from second
