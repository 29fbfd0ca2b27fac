"""The zoo's networks have exactly the published sizes, shapes and parameter names."""

import os
from pathlib import Path

import pytest
import torch

from metaprune.core.errors import ConfigError
from metaprune.models import create, default_input_shape, load_weights
from metaprune_networks.zoo import zoo_names


def count(spec, **options):
    with torch.device("meta"):
        model = create(spec, **options)
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "options", "params"),
    [
        ("resnet20", {}, 269_722),
        ("resnet32", {}, 464_154),
        ("resnet56", {}, 853_018),
        ("resnet56", {"shortcut": "B"}, 855_770),
        ("resnet110", {}, 1_727_962),
        ("resnet18_cifar", {}, 11_173_962),
        ("resnet18_cifar", {"num_classes": 200}, 11_271_432),
        ("resnet18", {}, 11_689_512),
        ("resnet50", {}, 25_557_032),
        ("resnet50", {"width": 0.85}, 18_690_753),
        ("resnet50", {"width": 0.5}, 6_917_640),
        ("resnet50", {"width": 0.25}, 1_993_976),
        ("vgg19_bn", {}, 20_035_018),
        ("vgg19_bn", {"num_classes": 100}, 20_081_188),
        ("mobilenet_v1", {}, 4_231_976),
        ("mobilenet_v1", {"width": 0.75}, 2_585_560),
        ("mobilenet_v1", {"width": 0.5}, 1_331_592),
        ("mobilenet_v1", {"width": 0.25}, 470_072),
        # The widths that AutoSlim publishes for 325 M MACs.
        (
            "mobilenet_v1",
            {"widths": (16, 32, 48, 64, 112, 184, 320, 368, 320, 416, 464, 560, 1128, 1128)},
            4_001_448,
        ),
        ("mobilenet_v2", {}, 3_504_872),
        ("mobilenet_v2", {"width": 1.4}, 6_108_776),
        ("mobilenet_v2", {"width": 1.3}, 5_386_792),
        ("mobilenet_v2", {"width": 0.75}, 2_636_424),
        ("mobilenet_v2", {"width": 0.5}, 1_968_680),
        ("mobilenet_v2", {"width": 0.35}, 1_677_128),
        ("vit_tiny", {}, 5_717_416),
        ("vit_b16", {}, 86_567_656),
        ("vit_micro", {}, 205_066),
        ("resnet8", {}, 77_754),
        ("lenet", {}, 431_080),
        ("mlp", {}, 266_610),
    ],
)
def test_parameter_counts(name, options, params):
    assert count(f"zoo:{name}", **options) == params


@pytest.mark.parametrize(
    ("name", "macs"),
    [("resnet50", 4_089_184_256), ("mobilenet_v1", 568_740_352), ("mobilenet_v2", 300_774_272)],
)
def test_macs_at_224_pixels(name, macs):
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model, x = create(f"zoo:{name}").eval(), torch.empty(1, 3, 224, 224)
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert counter.get_total_flops() == 2 * macs


@pytest.mark.parametrize("name", zoo_names())
def test_forward_shape(name):
    with torch.device("meta"):
        model = create(f"zoo:{name}", num_classes=7)
        shape = default_input_shape(f"zoo:{name}", model)
        assert model(torch.empty(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("name", ["resnet20", "resnet56", "resnet18_cifar", "vgg19_bn", "mobilenet_v1", "mobilenet_v2"])
@pytest.mark.parametrize("pixels", [28, 32])
def test_small_grey_images(name, pixels):
    with torch.device("meta"):
        model = create(f"zoo:{name}", in_channels=1, num_classes=5)
        assert model(torch.empty(2, 1, pixels, pixels)).shape == (2, 5)


@pytest.mark.parametrize("name", ["lenet", "mlp", "vit_micro"])
def test_image_size_sets_the_input_shape(name):
    model = create(f"zoo:{name}", image_size=32, in_channels=3)
    assert default_input_shape(f"zoo:{name}", model) == (3, 32, 32)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_option_a_shortcut_subsamples_and_pads_evenly():
    block = create("zoo:resnet20").layer2[0].downsample
    x = torch.randn(2, 16, 8, 8)
    y = block(x)
    assert y.shape == (2, 32, 4, 4)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any() and not y[:, 24:].any()


def test_attention_takes_its_sizes_from_attributes():
    model = create("zoo:vit_micro").eval()
    attention = model.blocks[0].attn
    keep = torch.arange(2 * 16)  # the first two of four heads
    rows = torch.cat([keep + part * 64 for part in range(3)])
    x = torch.randn(1, 5, 64)
    masked_proj = torch.zeros_like(attention.proj.weight)
    masked_proj[:, keep] = attention.proj.weight[:, keep].detach()
    small = torch.nn.Linear(64, len(rows)), torch.nn.Linear(len(keep), 64)
    small[0].weight.data, small[0].bias.data = attention.qkv.weight[rows].detach(), attention.qkv.bias[rows].detach()
    small[1].weight.data, small[1].bias.data = attention.proj.weight[:, keep].detach(), attention.proj.bias.detach()
    attention.proj.weight.data = masked_proj
    expected = attention(x)
    attention.qkv, attention.proj, attention.num_heads = *small, 2
    assert torch.allclose(attention(x), expected, atol=1e-6)


def test_initialisation_follows_the_global_seed_and_is_finite():
    torch.manual_seed(3)
    first = create("zoo:resnet8")
    torch.manual_seed(3)
    second = create("zoo:resnet8")
    x = torch.randn(4, 1, 28, 28)
    assert torch.equal(first(x), second(x))
    assert first(x).isfinite().all()


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("zoo:resnet57", {}, "resnet5"),
        ("zo:resnet20", {}, "'zoo'"),
        ("resnet20", {}, "zoo:resnet20"),
        ("zoo:resnet20", {"num_class": 3}, "num_classes"),
        ("zoo:resnet20", {"shortcut": "C"}, '"B"'),
        ("zoo:resnet20", {"widths": (16, 32)}, "3 positive widths"),
        ("zoo:resnet20", {"widths": (32, 16, 8)}, 'shortcut="B"'),
        ("zoo:vgg19_bn", {"widths": (64,)}, "16 positive widths"),
        ("zoo:vit_micro", {"image_size": 30}, "patch size"),
        ("zoo:vit_micro", {"num_heads": 5}, "num_heads"),
        ("zoo:lenet", {"image_size": 8}, "16x16"),
        ("python:metaprune.nowhere:f", {}, "does not import"),
        ("python:metaprune.core.errors:clostest", {}, "closest"),
        ("python:math", {}, "python:module:function"),
        ("python:builtins:dict", {}, "torch.nn.Module"),
    ],
)
def test_wrong_specs_and_options(spec, options, message):
    with pytest.raises(ConfigError, match=message):
        create(spec, **options)


def test_python_spec():
    model = create("python:torch.nn:Linear", in_features=3, out_features=2)
    assert model.weight.shape == (2, 3)


@pytest.mark.parametrize("depth", [20, 32, 56])
def test_published_cifar_weights_fit(depth):
    default = Path(__file__).parents[3] / "shared" / "data"
    file = Path(os.environ.get("METAPRUNE_SHARED_DATA", default)) / f"resnet{depth}_cifar10.safetensors"
    if not file.is_file():
        pytest.skip(f"{file} is not here: set METAPRUNE_SHARED_DATA to the folder of the CIFAR weights")
    model = load_weights(create(f"zoo:resnet{depth}"), file)
    assert model.linear.weight.abs().sum() > 0


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("resnet18", "torchvision:resnet18"),
        ("resnet50", "torchvision:resnet50"),
        ("mobilenet_v2", "torchvision:mobilenet_v2"),
        ("vit_tiny", "timm:vit_tiny_patch16_224"),
    ],
)
def test_names_and_shapes_equal_the_packages(ours, theirs):
    try:
        with torch.device("meta"):
            other = create(theirs)
    except ImportError as error:
        pytest.skip(f"optional package: {error}")
    with torch.device("meta"):
        own = create(f"zoo:{ours}")
    assert {k: v.shape for k, v in own.state_dict().items()} == {k: v.shape for k, v in other.state_dict().items()}
    assert default_input_shape(theirs, other) == (3, 224, 224)


def test_same_outputs_as_torchvision():
    try:
        theirs = create("torchvision:mobilenet_v2", num_classes=10).eval()
    except ImportError as error:
        pytest.skip(f"optional package: {error}")
    ours = create("zoo:mobilenet_v2", num_classes=10).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x), atol=1e-6)
