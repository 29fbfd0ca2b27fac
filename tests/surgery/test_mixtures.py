"""Experts of transformers: cut, proved, generated from, saved and read back; costs are recounted."""

import pytest
import torch
from language_networks import transformers
from mixtures import experts_of

import metaprune as mp
import metaprune.hf
from metaprune.testing import assert_untouched

IDS = torch.randint(3, 60, (2, 10), generator=torch.Generator().manual_seed(0))
SIZES = dict(vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
SIZES |= dict(num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
CHOICE = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 16, "qk_rope_head_dim": 4, "v_head_dim": 8, "qk_nope_head_dim": 8}
LATENT |= {"head_dim": 4, "first_k_dense_replace": 0, "n_routed_experts": 8, "num_key_value_heads": 4, **CHOICE}
FAMILIES = {
    "Mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "Qwen2Moe": {"num_experts": 8, "shared_expert_intermediate_size": 40, "decoder_sparse_step": 1, **CHOICE},
    "Qwen3Moe": {"num_experts": 8, "decoder_sparse_step": 1, **CHOICE},
    "Olmoe": {"num_experts": 8, "num_experts_per_tok": 2},
    "DeepseekV3": {**LATENT, "n_group": 1, "topk_group": 1},
}
OTHERS = {
    "GptOss": {"num_local_experts": 8, "num_experts_per_tok": 2, "head_dim": 8, "layer_types": ["full_attention"] * 2},
    "GraniteMoe": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "Glm4Moe": {**CHOICE, "n_routed_experts": 8, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0},
    "HunYuanMoEV1": {"num_experts": 8, "moe_topk": 2, "head_dim": 8},
}
EVEN = {"Mixtral": "num_local_experts", "Qwen2Moe": "num_experts", "DeepseekV3": "n_routed_experts"}
KEPT = ((0, 2, 3, 6, 7), (1, 3, 4, 5))


def mixture(family, **more):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **{**FAMILIES, **OTHERS}[family], **more})
    return getattr(transformers, f"{family}ForCausalLM")(config).eval()


def plan_of(network, kept=KEPT):
    groups = experts_of(network)
    assert [(g.width, g.least) for g in groups] == [(8, 2)] * 2
    return mp.Plan({g.name: channels for g, channels in zip(groups, kept, strict=True)})


@torch.no_grad()
def logits(model):
    return model(IDS).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_are_cut_proved_and_counted(family):
    model = mixture(family)
    with assert_untouched(model):
        network = mp.trace(model, IDS)
        pruned = mp.cut(network, plan := plan_of(network), form="module")
    assert pruned.error is not None and pruned.error <= 1e-9
    small, wide = (dict(m.named_parameters()) for m in (pruned.model, model))
    for i, kept in enumerate(KEPT):
        for name in ("gate.weight", "experts.gate_up_proj", "experts.down_proj"):
            name = f"model.layers.{i}.mlp.{name}"
            assert torch.equal(small[name], wide[name][list(kept)])
    cost, full = network.cost(plan), network.cost()
    assert cost.params == sum(p.numel() for p in small.values())
    for counted, parameters in ((cost, small), (full, wide)):
        idle = (p.numel() - 2 * p[0].numel() for n, p in parameters.items() if ".experts." in n)
        assert counted.active_params == counted.params - sum(idle)
    router = IDS.shape[1] * 32  # MACs of a row of a router; as many experts run for a token as before
    assert full.macs - cost.macs == router * sum(8 - len(kept) for kept in KEPT)
    graph = mp.cut(network, plan, form="graph").model
    assert torch.allclose(graph(IDS).logits, logits(pruned.model), atol=1e-5)


@pytest.mark.parametrize("family", OTHERS)
def test_experts_of_other_families_are_cut_and_proved(family):
    model = mixture(family)
    for parameter in model.parameters():
        if not parameter.any():  # biases of experts: zeros prove nothing
            torch.nn.init.normal_(parameter, std=0.1)
    network = mp.trace(model, IDS)
    pruned = mp.cut(network, plan_of(network))
    assert pruned.form == "module" and pruned.error is not None and pruned.error <= 1e-9


@pytest.mark.parametrize("family", ["Mixtral", "Qwen2Moe", "Qwen3Moe"])
def test_uneven_experts_generate_and_are_read_back(family, tmp_path):
    result = mp.prune(
        mixture(family), IDS, budget="params=75%", method="random", seed=4, only=["*:experts"], progress=False
    )
    widths = {len(channels) for channels in result.plan.keep.values()}
    assert len(widths) == 2 and result.pruned.form == "module"
    small = result.model
    options = {"attention_mask": torch.ones_like(IDS), "max_new_tokens": 4, "do_sample": False}
    assert torch.equal(*(small.generate(IDS, **options, use_cache=use) for use in (True, False)))
    result.save(tmp_path / "own")
    metaprune.hf.save_pretrained(result.pruned, tmp_path / "hf")
    for again in (mp.load(tmp_path / "own"), metaprune.hf.from_pretrained(tmp_path / "hf")):
        assert torch.equal(logits(again), logits(small))
    again = mp.load(tmp_path / "own", form="graph")
    assert torch.allclose(again(IDS).logits, logits(small), atol=1e-5)


@pytest.mark.parametrize("family", EVEN)
def test_a_config_says_as_many_experts_in_every_layer(family, tmp_path):
    network = mp.trace(mixture(family), IDS)
    pruned = mp.cut(network, plan_of(network, ((0, 1, 4, 7), (1, 3, 4, 5))))
    assert pruned.config.changes == {EVEN[family]: 4}
    pruned.model.save_pretrained(tmp_path)
    again = type(pruned.model).from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(pruned.model))


def test_keep_config_keeps_as_many_experts_in_every_layer():
    result = mp.prune(
        mixture("Mixtral"),
        IDS,
        budget="params=60%",
        method="random",
        only=["*:experts"],
        keep_config=True,
        progress=False,
    )
    assert len({len(channels) for channels in result.plan.keep.values()}) == 1
    assert result.pruned.config.changes == {"num_local_experts": len(next(iter(result.plan.keep.values())))}


def test_budgets_of_active_and_of_all_parameters():
    model = mixture("Qwen2Moe")
    full = mp.trace(model, IDS).cost()
    result = mp.prune(model, IDS, budget="params=75%,active_params=90%", method="magnitude", progress=False)
    after = result.record["cost"]["after"]
    assert after["params"] <= 0.75 * full.params and after["active_params"] <= 0.9 * full.active_params
    with pytest.raises(mp.InfeasibleBudgetError, match="active_params"):
        mp.prune(model, IDS, budget="active_params=80%", method="random", only=["*:experts"], progress=False)


def test_experts_that_are_chosen_in_groups_stay_and_say_so():
    network = mp.trace(mixture("DeepseekV3", n_group=4, topk_group=2), IDS)
    assert not experts_of(network)
    reasons = {d.reason for d in network.space.locked if d.parameter.endswith("experts.down_proj")}
    assert reasons == {"a router chooses among groups of it first"}
    assert network.cost().active_params < network.cost().params


def test_experts_that_run_one_after_the_other():
    model = mixture("Mixtral", experts_implementation="eager")
    network = mp.trace(model, IDS)
    pruned = mp.cut(network, plan_of(network), form="module")
    assert pruned.error is not None and pruned.error <= 1e-9
    assert [layer.mlp.experts.num_experts for layer in pruned.model.model.layers] == [5, 4]
