"""The networks: one of every timm family, torchvision family, and a list of transformers classes. Random weights.

`NETWORKS[name]` is built by `build(name)`; names read `timm:resnet18`, `torchvision:swin_t`, `hf:llama`. Those that
read `outside:...` are a sweep of their own (see outside.py).
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hf_networks import HF
from outside import OUTSIDE
from torch import nn

from metaprune.core.imports import allow_torchvision_import
from metaprune.testing import perturb

FAMILIES: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "timm_families.json").read_text())["families"]
Built = tuple[nn.Module, tuple, dict[str, Any]]


@dataclass(frozen=True)
class Entry:
    """How a network is made, and the options of `metaprune.trace` that its use calls for."""

    builder: Callable[[], Built]
    trace: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    needs: tuple[str, ...] = ()  # packages beyond those of the benchmark

    @property
    def missing(self) -> list[str]:
        """Packages that are not installed."""
        return [package for package in self.needs if importlib.util.find_spec(package) is None]


def _image(*shape: int) -> tuple[torch.Tensor]:
    return (torch.randn(2, *shape, generator=torch.Generator().manual_seed(1)),)


def _timm(family: str) -> Built:
    import timm

    chosen = FAMILIES[family]
    model = timm.create_model(chosen["model"], **chosen["options"])
    return model, _image(chosen["input_size"][0], chosen["size"], chosen["size"]), {}


def _timm_entries() -> tuple[dict[str, Entry], dict[str, str]]:
    entries, skipped = {}, {}
    for family, chosen in FAMILIES.items():
        name = f"timm:{chosen.get('model', family)}"
        if "skip" in chosen:
            skipped[name] = f"family {family}: {chosen['skip']}"
            continue
        reduced = ", ".join(f"{k}={v}" for k, v in chosen["options"].items() if k != "num_classes")
        note = f"family {family}" + (f", reduced by {reduced}" if reduced else "")
        entries[name] = Entry(lambda family=family: _timm(family), note=note)
    return entries, skipped


def _classifier(name: str, size: int = 64, **options: Any) -> Built:
    import torchvision

    return getattr(torchvision.models, name)(**options), _image(3, size, size), {}


def _segmenter(name: str) -> Built:
    import torchvision

    model = getattr(torchvision.models.segmentation, name)(weights=None, weights_backbone=None)
    return model, _image(3, 64, 64), {}


def _backbone(name: str) -> Built:
    """What a detector computes before its heads: a dictionary of feature maps of the widths the heads expect."""
    import torchvision

    model = getattr(torchvision.models.detection, name)(weights=None, weights_backbone=None)
    return model.backbone, _image(3, 128, 128), {}


def _video(name: str, frames: int, size: int) -> Built:
    import torchvision

    return getattr(torchvision.models.video, name)(), _image(3, frames, size, size), {}


def _vision_transformer() -> Built:
    """The class of vit_b_32 at a quarter of its width and depth: 88 M parameters would only take longer."""
    from torchvision.models.vision_transformer import VisionTransformer

    model = VisionTransformer(image_size=64, patch_size=16, num_layers=3, num_heads=3, hidden_dim=192, mlp_dim=768)
    return model, _image(3, 64, 64), {}


NO_HELPER_HEADS = {"aux_logits": False, "init_weights": False}
CLASSIFIERS: dict[str, dict[str, Any]] = {
    "alexnet": {"size": 96},
    "vgg11_bn": {},
    "resnet18": {},
    "resnext50_32x4d": {},
    "densenet121": {},
    "googlenet": NO_HELPER_HEADS,
    "inception_v3": {"size": 128, **NO_HELPER_HEADS},
    "mobilenet_v2": {},
    "mobilenet_v3_small": {},
    "mnasnet0_5": {},
    "squeezenet1_1": {},
    "shufflenet_v2_x0_5": {},
    "efficientnet_b0": {},
    "efficientnet_v2_s": {},
    "regnet_y_400mf": {},
    "regnet_x_400mf": {},
    "convnext_tiny": {},
    "swin_t": {},
    "swin_v2_t": {},
    "maxvit_t": {"size": 224},
}
SEGMENTERS = ("deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large", "fcn_resnet50")
BACKBONES = ("fasterrcnn_resnet50_fpn", "ssdlite320_mobilenet_v3_large", "retinanet_resnet50_fpn")


def _torchvision_entries() -> dict[str, Entry]:
    found = {name: Entry(lambda n=name, o=o: _classifier(n, **o)) for name, o in CLASSIFIERS.items()}
    found["vision_transformer"] = Entry(_vision_transformer, note="the class of vit_b_32, smaller")
    found |= {name: Entry(lambda n=name: _segmenter(n)) for name in SEGMENTERS}
    found |= {f"{name}.backbone": Entry(lambda n=name: _backbone(n)) for name in BACKBONES}
    found["r3d_18"] = Entry(lambda: _video("r3d_18", 4, 32))
    found["s3d"] = Entry(lambda: _video("s3d", 16, 224))
    found["mvit_v2_s"] = Entry(lambda: _video("mvit_v2_s", 16, 224))
    return {f"torchvision:{name}": entry for name, entry in found.items()}


def _hf_entries() -> dict[str, Entry]:
    return {
        f"hf:{name}": Entry(make, options, ", ".join(f"{k}={v}" for k, v in options.items()))
        for name, (make, options) in HF.items()
    }


_TIMM, SKIPPED = _timm_entries()
_OUTSIDE = {f"outside:{name}": Entry(make, options, needs=needs) for name, (make, options, needs) in OUTSIDE.items()}
NETWORKS: dict[str, Entry] = {**_TIMM, **_torchvision_entries(), **_hf_entries(), **_OUTSIDE}


def source_of(name: str) -> str:
    return name.partition(":")[0]


def build(name: str) -> Built:
    """(model, args, kwargs): from a fixed seed, perturbed, in eval mode."""
    allow_torchvision_import()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model, args, kwargs = NETWORKS[name].builder()
    perturb(model, scale=0.02)
    return model.eval(), args, kwargs
