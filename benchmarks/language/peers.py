"""What Torch-Pruning makes of a Llama at a share of its parameters, by the way of its own script for language models.

Heads, stream and neurons are cut in every layer at one ratio, head dimensions stay (its examples/LLMs). `neurons` cuts
those of the MLPs alone, as our rows do. The ratio is the least that meets the budget.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

TAYLOR_SEQUENCES, HALVINGS = 8, 6
PEERS = {
    "Torch-Pruning: magnitude": ("magnitude", False),
    "Torch-Pruning: Taylor (reads labels)": ("taylor", False),
    "Torch-Pruning: Taylor (reads labels), neurons": ("taylor", True),
}


def peer_model(label: str, dense: nn.Module, ids: Tensor, budget: str) -> tuple[nn.Module | None, dict[str, Any]]:
    """The network that meets the budget with the least ratio, and its figures; None where none runs, and why."""
    kind, neurons = PEERS[label]
    full = parameters_of(dense)
    share = float(budget.rstrip("%")) / 100
    bound, low, high, cut = full * share, 0.0, 2 * (1 - share), None  # neurons are more than half of the parameters
    gradients = taylor_gradients(dense, ids[:TAYLOR_SEQUENCES]) if kind == "taylor" else {}
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        try:
            tried = pruned(dense, kind, gradients, ids[:1], middle, neurons)
        except Exception as failure:  # whatever the library raises on this network is the result
            return None, {"error": f"{type(failure).__name__}: {failure}"}
        if parameters_of(tried) <= bound:
            high, cut = middle, tried
        else:
            low = middle
    if cut is None:
        return None, {"error": "no ratio that was tried met the budget"}
    return cut, {"params_share": round(parameters_of(cut) / full, 4), "ratio": round(high, 4)}


def pruned(
    dense: nn.Module, kind: str, gradients: dict[str, Tensor], ids: Tensor, ratio: float, neurons: bool
) -> nn.Module:
    """A copy cut at a ratio, with the attributes of its attention set as the library's script sets them."""
    model: Any = copy.deepcopy(dense)
    model.set_attn_implementation("eager")  # it does not run on the fused attention, nor on a model that caches
    for name, parameter in model.named_parameters():
        parameter.grad = gradients[name].clone() if gradients else None
    layers, config = model.model.layers, model.config
    heads = {m: config.num_key_value_heads for x in layers for m in (x.self_attn.k_proj, x.self_attn.v_proj)}
    heads |= {x.self_attn.q_proj: config.num_attention_heads for x in layers}
    importances = {
        "magnitude": tp.importance.GroupMagnitudeImportance(),
        "taylor": tp.importance.GroupTaylorImportance(),
    }
    ignored = [
        m for n, m in model.named_modules() if isinstance(m, nn.Linear) and not n.endswith(("gate_proj", "up_proj"))
    ]
    pruner = tp.pruner.BasePruner(
        model,
        {"input_ids": ids},
        importance=importances[kind],
        pruning_ratio=ratio,
        ignored_layers=[*ignored, model.model.embed_tokens] if neurons else [model.lm_head],
        num_heads=heads,
        prune_num_heads=not neurons,
        prune_head_dims=False,
        head_pruning_ratio=0.0 if neurons else ratio,
        output_transform=lambda output: output.logits.sum(),
    )
    pruner.step()
    for layer in layers:
        attention = layer.self_attn
        attention.num_key_value_groups = attention.q_proj.out_features // attention.k_proj.out_features
    model.zero_grad()
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight), "a cut of tied weights in two ways"
    model.tie_weights()  # it cuts them one by one, and they would count twice
    with torch.no_grad():
        model(input_ids=ids)  # a cut that does not run is none
    return model


def taylor_gradients(model: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    """Gradients of the mean loss of the next token."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    logits = model(input_ids=ids).logits[:, :-1]
    loss = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def parameters_of(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
