"""Vision transformers (Dosovitskiy et al., arXiv 2010.11929; tiny: Touvron et al., 2012.12877).

Parameter names are those most checkpoints use: patch_embed.proj, cls_token, pos_embed, blocks.i.{norm1, attn.qkv,
attn.proj, norm2, mlp.fc1, mlp.fc2}, norm, head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaprune.core.errors import ConfigError
from metaprune_networks.layers import square


class PatchEmbed(nn.Module):
    """Non-overlapping patches to vectors: [B, C, H, W] -> [B, H * W / patch^2, dim]."""

    def __init__(self, in_channels: int, dim: int, patch_size: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention over [B, N, dim].

    All sizes come from `num_heads` and `head_dim`, and the scale is a stored number: a pruned copy sets the two
    integers and keeps the scale of the network it came from.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * num_heads * self.head_dim)
        self.proj = nn.Linear(num_heads * self.head_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, self.num_heads * self.head_dim))


class Mlp(nn.Module):
    """Two linear layers with GELU between: [B, N, dim] -> [B, N, dim]."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block: [B, N, dim] -> [B, N, dim]."""

    def __init__(self, dim: int, num_heads: int, hidden: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches, class token, learned positions, blocks, linear head: [B, in_channels, H, W] -> [B, num_classes]."""

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        patch_size: int,
        in_channels: int,
        num_classes: int,
        dim: int,
        depth: int,
        num_heads: int,
        hidden: Sequence[int],
    ):
        super().__init__()
        height, width = square(image_size)
        patches = (height // patch_size) * (width // patch_size)
        self.patch_embed = PatchEmbed(in_channels, dim, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + patches, dim))
        self.blocks = nn.Sequential(*(Block(dim, num_heads, hidden[i]) for i in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """New weights in all of the network; `recover="scratch"` asks for it."""
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        x = self.norm(self.blocks(x))
        return self.head(x[:, 0])


def vision_transformer(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    image_size: int | Sequence[int] = 224,
    patch_size: int = 16,
    dim: int = 192,
    depth: int = 12,
    num_heads: int = 3,
    mlp_ratio: float = 4.0,
    widths: Sequence[int] | None = None,
) -> VisionTransformer:
    """Build a ViT; `widths` are the hidden widths of the MLPs, one per block (default `dim * mlp_ratio`).

    Raises:
        ConfigError: the image is not a multiple of the patch, `dim` not of the heads, or the widths do not fit.
    """
    height, width = square(image_size)
    if height % patch_size or width % patch_size:
        raise ConfigError(f"Image size {height}x{width} is not a multiple of the patch size {patch_size}: change one.")
    if dim % num_heads:
        raise ConfigError(f"dim={dim} is not a multiple of num_heads={num_heads}: change one.")
    hidden = [int(dim * mlp_ratio)] * depth if widths is None else [int(w) for w in widths]
    if len(hidden) != depth or min(hidden) < 1:
        raise ConfigError(f"A ViT of depth {depth} takes {depth} positive MLP widths, not {hidden}.")
    return VisionTransformer(
        image_size=image_size,
        patch_size=patch_size,
        in_channels=in_channels,
        num_classes=num_classes,
        dim=dim,
        depth=depth,
        num_heads=num_heads,
        hidden=hidden,
    )
