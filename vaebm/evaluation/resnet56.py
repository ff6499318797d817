"""The usual ResNet-56 for CIFAR-10 (He et al., 2016, section 4.2), as a feature extractor.

Three stages of nine blocks at 32×32, 16×16 and 8×8 with 16, 32 and 64 channels. Shortcuts between stages are option A:
stride 2 and zero-padded channels, without weights.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaebm.system.checkpoint import load_state

SHAPE = (3, 32, 32)
"""(C, H, W) of its images."""

BLOCKS = 9
"""Blocks per stage, of two convolutions each; 56 layers with the first convolution and the linear layer."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's channels, for values in [0, 1]."""


def normalised(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) uint8 as input of a network: the mean and the standard deviation become 0 and 1."""
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def shortcut(x: Tensor, channels: int, stride: int) -> Tensor:
    """Option A: every `stride`-th pixel of x (B, C, H, W), zero-padded on both sides to (B, channels, …)."""
    more = (channels - x.shape[1]) // 2
    return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, more, more))


class ResidualBlock(nn.Module):
    """Residual block of two 3×3 convolutions with batch norm."""

    def __init__(self, inputs: int, channels: int, stride: int):
        super().__init__()
        self.channels, self.stride = channels, stride
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) → (B, channels, H / stride, W / stride)."""
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inner + shortcut(x, self.channels, self.stride))


def _stage(inputs: int, channels: int) -> nn.Sequential:
    """Nine blocks; if the channels change, the first one halves height and width."""
    first = ResidualBlock(inputs, channels, stride=1 if inputs == channels else 2)
    return nn.Sequential(first, *(ResidualBlock(channels, channels, 1) for _ in range(BLOCKS - 1)))


class ResNet56(nn.Module):
    """uint8 images → 64 features (mean over positions) → 10 logits; weights are named as in its checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = _stage(16, 16), _stage(16, 32), _stage(32, 64)
        self.linear = nn.Linear(64, 10)

    def features(self, images: Tensor) -> Tensor:
        """Features (B, 64) of uint8 images (B, 3, 32, 32)."""
        x = F.relu(self.bn1(self.conv1(normalised(images))))
        return self.layer3(self.layer2(self.layer1(x))).mean(dim=(2, 3))

    def logits(self, features: Tensor) -> Tensor:
        """Logits (B, 10) of features (B, 64)."""
        return self.linear(features)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 10) of uint8 images (B, 3, 32, 32)."""
        return self.logits(self.features(images))


def load_resnet56(path: Path | str) -> ResNet56:
    """Load the network of a checkpoint, in eval mode, frozen.

    Raises:
        UserError: no such file, or the weights in it are not exactly this network's.
    """
    model = ResNet56()
    load_state(model, path, "a state dict of CIFAR-10's ResNet-56")
    return model.eval().requires_grad_(False)
