"""Torch-Pruning and torch-kirigami on the same networks, driven by their documentation without work per network.

Success: the pruned model's forward runs, its output shapes are as before, and over 10% of the parameters are gone.
Whether the outputs are right is not asked of them (neither offers a proof).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from process import first_line, silenced, tail
from torch import nn
from torch.utils import _pytree as pytree

from networks import NETWORKS, build

RATIO = 0.5
LEAST_REMOVED = 0.1
HELP = {
    "torch-pruning": (
        "BasePruner, ratio 0.5, round_to=8, group magnitude, a batch of one as in its examples; layers as wide as the "
        "output are in ignored_layers; num_heads is filled for every q, k, v and qkv layer found, for "
        "MultiheadAttention, and from the config of decoders (whole heads there, as in its LLM example); a second "
        "attempt leaves num_heads empty; attention written out (timm's fused attention off, transformers' attention "
        "eager); after pruning hidden_dim, num_heads, head_dim, attn_dim, attention_head_size, all_head_size and "
        "num_key_value_groups are set from the new widths, as in its examples"
    ),
    "torch-kirigami": (
        "DependencyGraph.build, discover_candidates, Greedy(GroupMagnitude(p=2)), ChannelRatio(0.5) for every axis; "
        "where that cannot be met, ParameterBudget of half the parameters; models that take keywords are wrapped in "
        "one with positional inputs"
    ),
}
# names under which attention classes keep the number of heads, and their projections
HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "heads", "n_head")
PROJECTIONS = (
    "qkv",
    "qkv_proj",
    "to_qkv",
    "q",
    "k",
    "v",
    "q_proj",
    "k_proj",
    "v_proj",
    "query",
    "key",
    "value",
    "to_q",
    "to_k",
    "to_v",
    "q_lin",
    "k_lin",
    "v_lin",
)
Pruned = tuple[nn.Module, str]
Free = bool | tuple[str, ...]  # all outputs may change their width, none, or those of these names


def measure(tool: str, name: str, row: dict[str, Any], save: Callable[[], None]) -> None:
    """Fills `row`: passed, how, cpu_s of build and prune, parameters before and after, and the reason of a failure."""
    attempts = {"torch-pruning": (torch_pruning, torch_pruning_without_heads), "torch-kirigami": (kirigami,)}[tool]
    with silenced():
        tiny = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4)).eval()
        attempts[0](tiny, (torch.randn(2, 3, 3, 3),), {}, free_outputs=False)  # imports belong to no network
    row["passed"] = False
    save()
    for number, prune in enumerate(attempts):
        found = attempt(prune, tool, name)
        if number == 0 or found["passed"]:  # otherwise the reason of the first one stays
            row |= found
        save()
        if found["passed"]:
            return


def attempt(prune: Callable[..., Pruned], tool: str, name: str) -> dict[str, Any]:
    """One way to prune a freshly built network."""
    free = NETWORKS[name].trace.get("free_outputs", False)
    with silenced(), torch.no_grad():
        model, args, kwargs = build(name)
        if hasattr(model, "set_attn_implementation") and tool == "torch-pruning":
            model.set_attn_implementation("eager")
        before = _shapes(model(*args, **kwargs), free)
    found: dict[str, Any] = {"passed": False, "params": _count(model), "stage": "prune"}
    start = time.process_time()
    try:
        with silenced():
            model, found["how"] = prune(model, args, kwargs, free_outputs=free)
            found["cpu_s"] = time.process_time() - start
            found |= {"params_after": _count(model), "stage": "forward"}
            with torch.no_grad():
                after = _shapes(model.eval()(*args, **kwargs), free)
    except Exception as error:
        found.setdefault("cpu_s", time.process_time() - start)
        where = "forward of the pruned model: " if found["stage"] == "forward" else ""
        return {**found, "reason": where + first_line(error), "traceback": tail(error)}
    if free is True:
        before, after = [s[:-1] for s in before], [s[:-1] for s in after]
    if before != after:
        return {**found, "reason": f"output shapes changed from {before} to {after}"[:300], "stage": "shapes"}
    removed = 1 - found["params_after"] / found["params"]
    if removed <= LEAST_REMOVED:
        return {**found, "reason": f"only {100 * removed:.1f}% of the parameters removed", "stage": "too little"}
    return {**found, "passed": True, "stage": "done"}


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _shapes(output: Any, free: Free = False) -> list[tuple[int, ...]]:
    """Of the outputs that count."""
    if isinstance(free, tuple):
        output = {k: v for k, v in output.items() if k not in free}
    return [tuple(x.shape) for x in pytree.tree_leaves(output) if isinstance(x, torch.Tensor)]


# --------------------------------------------------------------------------------------------------- Torch-Pruning


def torch_pruning(
    model: nn.Module, args: tuple, kwargs: dict[str, Any], *, free_outputs: Free, fill_heads: bool = True
) -> Pruned:
    import torch_pruning as tp

    for parameter in model.parameters():  # its tracing follows gradients
        parameter.requires_grad_(True)
    counts = _head_counts(model)
    heads = counts if fill_heads else {}
    decoder = type(model).__name__.endswith("ForCausalLM")
    whole_heads = (
        {"prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": RATIO} if decoder and heads else {}
    )
    pruner = tp.pruner.BasePruner(
        model,
        example_inputs=_example(args, kwargs),
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=RATIO,
        round_to=8,
        ignored_layers=[] if free_outputs is True else _output_layers(model, args, kwargs, free_outputs),
        num_heads=dict(heads),
        forward_fn=_forward(args),
        **whole_heads,
    )
    for group in pruner.step(interactive=True):
        group.prune()
    _fix_attributes(model, {**counts, **pruner.num_heads})
    return model, f"num_heads of {len(heads)} layers" + (", whole heads" if whole_heads else "")


def torch_pruning_without_heads(model: nn.Module, args: tuple, kwargs: dict[str, Any], *, free_outputs: Free) -> Pruned:
    """Second attempt."""
    return torch_pruning(model, args, kwargs, free_outputs=free_outputs, fill_heads=False)


def _example(args: tuple, kwargs: dict[str, Any]) -> Any:
    """A batch of one, as in its examples: a tensor where there is one, else a dictionary."""
    args, kwargs = pytree.tree_map(lambda x: x[:1] if isinstance(x, torch.Tensor) else x, (args, kwargs))
    return dict(kwargs) if kwargs else args[0] if len(args) == 1 else list(args)


def _forward(args: tuple) -> Callable[..., Any]:
    """Runs a model on `_example`, in float32 with gradients."""

    def forward(model: nn.Module, example: Any) -> Any:
        return model(**example) if isinstance(example, dict) else model(example) if len(args) == 1 else model(*example)

    return forward


def _output_layers(model: nn.Module, args: tuple, kwargs: dict[str, Any], free: Free) -> list[nn.Module]:
    """Layers as wide as an output (class-count heads)."""
    with torch.no_grad():
        shapes = _shapes(model(*args, **kwargs), free)
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
        values |= {a: total // count for a in ("head_dim", "attention_head_size", "key_value_proj_dim")}
        values |= {"all_head_size": total, "attn_dim": total, "inner_dim": total}
        if "k_proj" in children:
            values |= {"num_key_value_groups": count // heads[children["k_proj"]]}
        for attribute, value in values.items():
            if isinstance(vars(module).get(attribute), int):
                setattr(module, attribute, value)


# --------------------------------------------------------------------------------------------------- torch-kirigami


class _Plain(nn.Module):
    """Positional tensors in, tensors out: torch.fx cannot trace a root whose forward takes **kwargs."""

    def __init__(self, model: nn.Module, names: list[str], fixed: dict[str, Any]):
        super().__init__()
        self.model, self.names, self.fixed = model, names, fixed

    def _run(self, *tensors: torch.Tensor) -> Any:
        output = self.model(**dict(zip(self.names, tensors, strict=True)), **self.fixed)
        return output["logits"] if "logits" in output else output["last_hidden_state"]


class _PlainOne(_Plain):
    def forward(self, first: torch.Tensor) -> Any:
        return self._run(first)


class _PlainTwo(_Plain):
    def forward(self, first: torch.Tensor, second: torch.Tensor) -> Any:
        return self._run(first, second)


def _plain(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[nn.Module, tuple]:
    """A model that takes keywords, as one that takes its tensors by position."""
    tensors = {k: v for k, v in kwargs.items() if isinstance(v, torch.Tensor)}
    if args or not tensors:
        return model, args
    fixed = {k: v for k, v in kwargs.items() if k not in tensors}
    kind = {1: _PlainOne, 2: _PlainTwo}[len(tensors)]
    return kind(model, list(tensors), fixed).eval(), tuple(tensors.values())


def kirigami(model: nn.Module, args: tuple, kwargs: dict[str, Any], *, free_outputs: Free) -> Pruned:
    from torch_kirigami import DependencyGraph
    from torch_kirigami.pruning import (
        ChannelRatio,
        Greedy,
        GroupMagnitude,
        ParameterBudget,
        PlanningError,
        Pruner,
    )

    traced, inputs = _plain(model, args, kwargs)
    graph = DependencyGraph.build(traced, args=inputs)
    pruner = Pruner(traced, graph=graph, preserve_io=free_outputs is not True)
    space = pruner.discover_candidates()
    strategy = Greedy(GroupMagnitude(p=2))
    try:
        pruner.prune(space, budget=ChannelRatio(RATIO), strategy=strategy)
        return model, "ChannelRatio(0.5)"
    except PlanningError as error:
        try:
            budget = ParameterBudget.from_ratio(traced, RATIO)
            pruner.prune(space, budget=budget, strategy=strategy)
            return model, "ParameterBudget of 50%"
        except PlanningError as second:
            raise PlanningError(f"by channels: {str(error)[:120]}; by parameters: {str(second)[:120]}") from second
