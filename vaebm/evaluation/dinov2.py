"""DINOv2's ViT-L/14 (Oquab et al., 2023) as dgm-eval uses it for FD-DINOv2 (Stein et al., 2023).

Parameters are named as in the published file. torch-fidelity has no such network: its extractor runs code from a
repository that it fetches, and resizes bilinearly.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from vaebm.evaluation.resnet56 import normalised
from vaebm.system.checkpoint import load_state

WIDTH, LAYERS, HEADS = 1024, 24, 16
SIDE, PATCH = 224, 14
TRAINED_GRID = 37
"""Patches per side that the positions in the file are for, 518 / 14."""

OFFSET = 0.1
"""Added by the published network to the new number of patches per side when it resamples positions."""


def resized(images: Tensor) -> Tensor:
    """Pillow's bicubic resize with antialiasing of uint8 images (B, 1 or 3, H, W) to uint8 (B, 3, 224, 224)."""
    pictures = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()
    found = [Image.fromarray(one).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for one in pictures]
    return torch.from_numpy(np.stack([np.asarray(one) for one in found])).permute(0, 3, 1, 2).to(images.device)


class DINOv2Block(nn.Module):
    """Attention and multilayer perceptron, each with a norm before and a scale of its channels after it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6), nn.LayerNorm(WIDTH, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(WIDTH, 3 * WIDTH), "proj": nn.Linear(WIDTH, WIDTH)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(WIDTH, 4 * WIDTH), "fc2": nn.Linear(4 * WIDTH, WIDTH)})
        self.ls1, self.ls2 = (nn.ParameterDict({"gamma": torch.ones(WIDTH)}) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens, 1024) → the same."""
        qkv = self.attn["qkv"](self.norm1(x)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2)
        x = x + self.ls1["gamma"] * self.attn["proj"](attended)
        return x + self.ls2["gamma"] * self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class DINOv2(nn.Module):
    """uint8 images → 1024 features, the normalised class token."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.mask_token = nn.Parameter(torch.zeros(1, WIDTH))  # in the file; only its training uses it
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + TRAINED_GRID**2, WIDTH))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, WIDTH, PATCH, PATCH)})
        self.blocks = nn.Sequential(*(DINOv2Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def positions(self, side: int) -> Tensor:
        """Positional embedding (1, 1 + side², 1024) of the class token and of `side`² patches."""
        if side == TRAINED_GRID:
            return self.pos_embed
        grid = self.pos_embed[:, 1:].unflatten(1, (TRAINED_GRID, TRAINED_GRID)).permute(0, 3, 1, 2)
        patches = F.interpolate(grid, scale_factor=(side + OFFSET) / TRAINED_GRID, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Class token (B, 1024) of normalised images (B, 3, S, S), S a multiple of 14."""
        patches = self.patch_embed["proj"](x)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        return self.norm(self.blocks(tokens + self.positions(patches.shape[-1]))[:, 0])

    def features(self, images: Tensor) -> Tensor:
        """Features (B, 1024) of uint8 images (B, 1 or 3, H, W)."""
        return self(normalised(resized(images)))


def load_dinov2(path: Path | str) -> DINOv2:
    """Load the network of the published file, in eval mode, frozen.

    Raises:
        UserError: no such file, or the weights in it are not exactly this network's.
    """
    with torch.device("meta"):  # the weights are those of the file, not copied
        network = DINOv2()
    load_state(network, path, "the state dict of DINOv2's ViT-L/14")
    return network.eval().requires_grad_(False)
