"""Networks of ultralytics, segmentation-models-pytorch, monai and diffusers, with random weights.

The packages are never a dependency; the sweep skips what is not installed.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import torch
from outside_spec import Builder, Built, draw


def _yolo(config: str, size: int = 64) -> Built:
    os.environ.setdefault("YOLO_VERBOSE", "False")
    os.environ.setdefault("YOLO_CONFIG_DIR", "build")
    from ultralytics import RTDETR, YOLO

    load = RTDETR if config.startswith("rtdetr") else YOLO
    return load(f"{config}.yaml").model, draw((1, 3, size, size)), {}


def _smp(name: str, encoder: str, size: int = 64, **options: Any) -> Built:
    import segmentation_models_pytorch as smp

    model = getattr(smp, name)(encoder_name=encoder, encoder_weights=None, classes=3, **options)
    return model, draw((2, 3, size, size)), {}


def _monai(name: str, shape: tuple[int, ...], **options: Any) -> Built:
    from monai.networks import nets

    return getattr(nets, name)(**options), draw(shape), {}


def _diffuser(name: str, *args: Any, **options: Any) -> Built:
    import diffusers

    return getattr(diffusers, name)(**options), args, {}


def _flux() -> Built:
    model, _, _ = _diffuser(
        "FluxTransformer2DModel", patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8],
    )  # fmt: skip
    hidden, text, pooled = draw((1, 16, 4), (1, 8, 32), (1, 32))
    places = torch.stack([torch.zeros(16), torch.arange(16) // 4, torch.arange(16) % 4], 1)
    return model, (), {
        "hidden_states": hidden, "encoder_hidden_states": text, "pooled_projections": pooled,
        "timestep": torch.tensor([0.5]), "img_ids": places, "txt_ids": torch.zeros(8, 3), "return_dict": False,
    }  # fmt: skip


def _conditional() -> Built:
    sample, text = draw((1, 4, 16, 16), (1, 7, 32))
    return _diffuser(
        "UNet2DConditionModel", sample, torch.tensor([10]), text, sample_size=16, block_out_channels=(16, 32),
        layers_per_block=1, cross_attention_dim=32, attention_head_dim=8, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def _unet2d(step: Any, widths: tuple[int, ...] = (16, 32), layers: int = 1) -> Built:
    kinds = ("AttnDownBlock2D", "AttnUpBlock2D")
    plain = len(widths) - 1
    return _diffuser(
        "UNet2DModel", draw((1, 3, 16, 16))[0], step, sample_size=16, block_out_channels=widths,
        layers_per_block=layers, norm_num_groups=4, attention_head_dim=8,
        down_block_types=("DownBlock2D",) * plain + kinds[:1], up_block_types=kinds[1:] + ("UpBlock2D",) * plain,
    )  # fmt: skip


def _dit() -> Built:
    return _diffuser(
        "DiTTransformer2DModel", draw((1, 4, 8, 8))[0], torch.tensor([10]), torch.tensor([3]), num_attention_heads=2,
        attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2, sample_size=8, patch_size=2,
        num_embeds_ada_norm=20,
    )  # fmt: skip


def _autoencoder() -> Built:
    return _diffuser(
        "AutoencoderKL", draw((1, 3, 16, 16))[0], block_out_channels=(16, 32), layers_per_block=1, latent_channels=4,
        norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip


VOLUME = (1, 1, 16, 16, 16)
THREE = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}
UNET = {**THREE, "channels": (8, 16, 32), "strides": (2, 2)}
YOLO = ("yolov5n", "yolov8n", "yolov8n-seg", "yolov8n-pose", "yolov9t", "yolov10n", "yolo11n", "yolo11n-cls")
YOLO += ("yolo11n-obb", "yolo12n", "yolo26n", "rtdetr-l")
SMP: dict[str, Builder] = {
    "Unet r18": partial(_smp, "Unet", "resnet18"),
    "Unet++ mbv2": partial(_smp, "UnetPlusPlus", "mobilenet_v2"),
    "FPN effb0": partial(_smp, "FPN", "efficientnet-b0"),
    "DeepLabV3+ r18": partial(_smp, "DeepLabV3Plus", "resnet18"),
    "PAN r18": partial(_smp, "PAN", "resnet18", 128),
    "MAnet r18": partial(_smp, "MAnet", "resnet18"),
    "Linknet r18": partial(_smp, "Linknet", "resnet18"),
    "Segformer mit_b0": partial(_smp, "Segformer", "mit_b0"),
    "UPerNet convnext": partial(_smp, "UPerNet", "tu-convnext_atto"),
    "DPT vit": partial(_smp, "DPT", "tu-vit_tiny_patch16_224", 224),
    "Unet scse regnetx": partial(_smp, "Unet", "tu-regnetx_002", decoder_attention_type="scse"),
    "PSPNet r18": partial(_smp, "PSPNet", "resnet18"),
}
MONAI: dict[str, Builder] = {
    "UNet 3d": partial(_monai, "UNet", VOLUME, num_res_units=1, **UNET),
    "UNet batch norm": partial(_monai, "UNet", VOLUME, num_res_units=1, norm="batch", **UNET),
    "SegResNet": partial(_monai, "SegResNet", VOLUME, init_filters=8, **THREE),
    "DynUNet": partial(
        _monai, "DynUNet", VOLUME, kernel_size=[3, 3, 3], strides=[1, 2, 2], upsample_kernel_size=[2, 2],
        filters=[8, 16, 24], **THREE,
    ),
    "UNETR": partial(
        _monai, "UNETR", (1, 1, 32, 32, 32), in_channels=1, out_channels=2, img_size=(32, 32, 32), feature_size=8,
        hidden_size=48, mlp_dim=96, num_heads=4,
    ),
    "SwinUNETR": partial(
        _monai, "SwinUNETR", (1, 1, 64, 64, 64), in_channels=1, out_channels=2, feature_size=12, depths=(1, 1, 1, 1),
        num_heads=(2, 2, 4, 4),
    ),
    "VNet": partial(_monai, "VNet", (1, 1, 16, 16, 16), **THREE),
    "AttentionUnet": partial(_monai, "AttentionUnet", VOLUME, **UNET),
}  # fmt: skip
DIFFUSERS: dict[str, Builder] = {
    "UNet2D ddpm": lambda: _unet2d(torch.tensor([10])),
    "UNet2D timestep int": lambda: _unet2d(10),
    "UNet2D cifar widths": lambda: _unet2d(torch.tensor([10]), (16, 32, 32, 32), 2),
    "UNet2DCondition SD": _conditional,
    "AutoencoderKL": _autoencoder,
    "DiT": _dit,
    "Flux": _flux,
}
PACKAGES: dict[str, tuple[Builder, str]] = {
    **{f"ultralytics {name}": (partial(_yolo, name), "ultralytics") for name in YOLO},
    **{f"smp {name}": (build, "segmentation_models_pytorch") for name, build in SMP.items()},
    **{f"monai {name}": (build, "monai") for name, build in MONAI.items()},
    **{f"diffusers {name}": (build, "diffusers") for name, build in DIFFUSERS.items()},
}
