"""The networks that every promise of the core is tested on: name -> (model, args, kwargs) in eval mode, perturbed."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from metaprune.models import create
from metaprune.testing import perturb

SHARED = Path(os.environ.get("METAPRUNE_SHARED_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def image(*shape: int) -> tuple[torch.Tensor]:
    return (torch.randn(2, *shape, generator=torch.Generator().manual_seed(1)),)


def zoo(name: str, *shape: int, **options):
    model = create(f"zoo:{name}", **options)
    return model, image(*(shape or model.input_shape)), {}


def vision(name: str, size: int = 64, **options):
    import torchvision

    return getattr(torchvision.models, name)(**options), image(3, size, size), {}


def torchvision_vit():
    from torchvision.models.vision_transformer import VisionTransformer

    model = VisionTransformer(image_size=64, patch_size=16, num_layers=2, num_heads=3, hidden_dim=96, mlp_dim=192)
    return model, image(3, 64, 64), {}


def timm_model(name: str, size: int, **options):
    import timm

    return timm.create_model(name, **options), image(3, size, size), {}


def bert(head: str):
    import transformers

    config = transformers.BertConfig(
        vocab_size=60,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=80,
        max_position_embeddings=20,
        num_labels=3,
    )
    tokens = torch.randint(0, 60, (2, 9), generator=torch.Generator().manual_seed(2))
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[1, 6:] = 0
    return getattr(transformers, head)(config), (), {"input_ids": tokens, "attention_mask": mask}


def shared_resnet(depth: int):
    file = SHARED / f"resnet{depth}_cifar10.safetensors"
    if not file.is_file():
        pytest.skip(f"{file} is not on this machine (set METAPRUNE_SHARED_DATA to its folder)")
    return create(f"zoo:resnet{depth}", weights=file), image(3, 32, 32), {}


SMALL: dict[str, Callable] = {
    "resnet20": lambda: zoo("resnet20", 3, 16, 16),
    "resnet20_B": lambda: zoo("resnet20", 3, 16, 16, shortcut="B"),
    "lenet": lambda: zoo("lenet"),
    "mlp": lambda: zoo("mlp"),
    "vit_micro": lambda: zoo("vit_micro"),
    "tv_vit": torchvision_vit,
    "timm_vit": lambda: timm_model("test_vit", 160),
    "timm_byobnet": lambda: timm_model("test_byobnet", 64),
    "bert": lambda: bert("BertModel"),
    "bert_classifier": lambda: bert("BertForSequenceClassification"),
}

LARGE: dict[str, Callable] = {
    "resnet56": lambda: zoo("resnet56", 3, 16, 16),
    "resnet56_B": lambda: zoo("resnet56", 3, 16, 16, shortcut="B"),
    "resnet18": lambda: zoo("resnet18", 3, 64, 64, width=0.5),
    "resnet50": lambda: zoo("resnet50", 3, 64, 64),
    "vgg19_bn": lambda: zoo("vgg19_bn"),
    "mobilenet_v1": lambda: zoo("mobilenet_v1", 3, 64, 64),
    "mobilenet_v2": lambda: zoo("mobilenet_v2", 3, 64, 64),
    "vit_tiny": lambda: zoo("vit_tiny", image_size=64),
    "tv_resnet18": lambda: vision("resnet18"),
    "tv_mobilenet_v2": lambda: vision("mobilenet_v2"),
    "tv_densenet121": lambda: vision("densenet121"),
    "tv_googlenet": lambda: vision("googlenet", aux_logits=False, init_weights=False),
    "tv_shufflenet": lambda: vision("shufflenet_v2_x0_5"),
    "tv_efficientnet": lambda: vision("efficientnet_b0"),
    "tv_regnet": lambda: vision("regnet_y_400mf"),
    "tv_convnext": lambda: vision("convnext_tiny"),
    "tv_swin": lambda: vision("swin_t"),
    "timm_ghostnet": lambda: timm_model("ghostnet_050", 64),
    "timm_levit": lambda: timm_model("levit_128s", 224),
    "timm_mobilevit": lambda: timm_model("mobilevit_xxs", 64),
}

SHARED_NETWORKS: dict[str, Callable] = {f"shared_resnet{d}": lambda d=d: shared_resnet(d) for d in (20, 32, 56)}

ONCE: dict[str, Callable] = {
    "resnet110": lambda: zoo("resnet110", 3, 16, 16),
    "vit_b16": lambda: zoo("vit_b16", image_size=32),
}

ALL = {**SMALL, **LARGE, **SHARED_NETWORKS, **ONCE}


def build(name: str):
    """(model, args, kwargs): from a fixed seed, perturbed unless it has trained weights, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, args, kwargs = ALL[name]()
    if name not in SHARED_NETWORKS:
        perturb(model, scale=0.02)
    return model.eval(), args, kwargs
