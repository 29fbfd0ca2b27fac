"""Every network: cut = mask, costs = the dispatcher's counts, parameters = the cut model's, original untouched."""

import pytest
from sample_networks import LARGE, ONCE, SHARED_NETWORKS, SMALL, build

from metaprune.testing import TOYS, assert_cut_equals_mask, toy

THOROUGH = {
    *(
        "tv_swin",
        "tv_googlenet",
        "tv_efficientnet",
        "tv_regnet",
        "tv_densenet121",
        "vgg19_bn",
        "resnet56_B",
        "resnet50",
    ),
    *("timm_ghostnet", "timm_mobilevit", "resnet110", "bert", "tv_mobilenet_v2"),
}
# forward code that derives one width from another cannot run at free widths; all others keep the user's class
GRAPH_ONLY = {"tv_vit", "timm_vit", "tv_shufflenet", "tv_swin", "timm_mobilevit"}
GRAPH_ONLY_TOYS = {"split", "shuffle", "written_out_attention", "pad_shortcut", "multihead"}

pytestmark = pytest.mark.filterwarnings("ignore")


def named(names):
    return [pytest.param(n, marks=pytest.mark.thorough) if n in THOROUGH else n for n in names]


@pytest.mark.parametrize("name", named([*SMALL, *LARGE, *SHARED_NETWORKS]))
def test_cut_equals_mask(name):
    model, args, kwargs = build(name)
    cuts = assert_cut_equals_mask(model, args, example_kwargs=kwargs, seeds=(0, 1, 2))
    forms = {c.form for c in cuts}
    assert forms == ({"graph"} if name in GRAPH_ONLY else {"module"}), cuts[0].why
    assert cuts[0].network.space.over_merged == 0


@pytest.mark.parametrize("name", named(ONCE))
def test_cut_equals_mask_once(name):
    model, args, kwargs = build(name)
    assert_cut_equals_mask(model, args, example_kwargs=kwargs, seeds=(0,))


@pytest.mark.parametrize("keep", [0.3, 0.9])
@pytest.mark.parametrize("name", SMALL)
def test_other_shares(name, keep):
    model, args, kwargs = build(name)
    assert_cut_equals_mask(model, args, example_kwargs=kwargs, keep=keep, seeds=(3,))


@pytest.mark.parametrize("keep", [0.01, 0.5, 0.9])
@pytest.mark.parametrize("name", TOYS)
def test_toys(name, keep):
    """At 1% one channel of every group is left."""
    example = toy(name)
    cuts = assert_cut_equals_mask(example.model, example.args, example_kwargs=example.kwargs, keep=keep, seeds=(0, 1))
    assert cuts[0].network.space.over_merged == 0
    if keep == 0.5:
        assert {c.form for c in cuts} == ({"graph"} if name in GRAPH_ONLY_TOYS else {"module"}), cuts[0].why
