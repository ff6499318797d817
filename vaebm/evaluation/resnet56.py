"""The ResNet of 56 layers that is common for CIFAR-10 (He et al., 2016, section 4.2), as an extractor of features.

Three stages of nine blocks at 32×32, 16×16 and 8×8 with 16, 32 and 64 channels. Where a stage begins smaller and wider than the last
one ended, the shortcut is option A: every second pixel, and zeros for the channels that are new; it has no weights.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaebm.system.checkpoint import load_plain
from vaebm.system.errors import UserError

FEATURES, CLASSES = 64, 10
SHAPE = (3, 32, 32)
"""Of the images that it is for."""

BLOCKS = 9
"""Of each stage; two convolutions each, with the first one and the linear layer 56 layers."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the three colours, in [0, 1]: what its inputs are normalised by."""


def shortcut(x: Tensor, channels: int, stride: int) -> Tensor:
    """Option A: every `stride`-th pixel of x (B, C, H, W), and as many channels of zeros before as after its own: (B, channels, …)."""
    more = (channels - x.shape[1]) // 2
    return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, more, more))


class Block(nn.Module):
    """Two 3×3 convolutions with batch norm, and the shortcut around them."""

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
    """Nine blocks; where the channels change, the first one halves height and width."""
    first = Block(inputs, channels, stride=1 if inputs == channels else 2)
    return nn.Sequential(first, *(Block(channels, channels, 1) for _ in range(BLOCKS - 1)))


class ResNet56(nn.Module):
    """uint8 images → 64 features, the mean over the last stage's positions → 10 logits; names of weights are those of its checkpoints."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = _stage(16, 16), _stage(16, 32), _stage(32, 64)
        self.linear = nn.Linear(FEATURES, CLASSES)
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def features(self, images: Tensor) -> Tensor:
        """Features (B, 64) of uint8 images (B, 3, 32, 32)."""
        x = (images.to(self.mean.dtype) / 255 - self.mean) / self.std
        x = F.relu(self.bn1(self.conv1(x)))
        found: Tensor = self.layer3(self.layer2(self.layer1(x))).mean(dim=(2, 3))
        return found

    def logits(self, features: Tensor) -> Tensor:
        """Logits (B, 10) of images with these features (B, 64)."""
        found: Tensor = self.linear(features)
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 10) of uint8 images (B, 3, 32, 32)."""
        return self.logits(self.features(images))


def load_resnet56(path: Path | str) -> ResNet56:
    """The network of a checkpoint, in eval mode, its weights frozen.

    The state dict may stand alone or under `state_dict`, its names may begin with `module.`, as those of a network trained on several
    devices do, and it may count batches, which nothing here needs.

    Raises:
        UserError: no such file, or the weights in it are not exactly this network's.
    """
    expected = "a state dict of CIFAR-10's ResNet-56"
    content = load_plain(path, expected)
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise UserError(f"{path}: expected {expected}, found another kind of file")
    state = {
        name.removeprefix("module."): value for name, value in state.items() if not name.endswith("num_batches_tracked")
    }
    model = ResNet56()
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    if differing := sorted(own.keys() ^ state.keys()):
        raise UserError(
            f"{path}: expected {expected}, found {'no' if differing[0] in own else 'also'} {differing[0]} in it"
        )
    for name, tensor in own.items():
        if not isinstance(state[name], Tensor) or state[name].shape != tensor.shape:
            found = tuple(state[name].shape) if isinstance(state[name], Tensor) else type(state[name]).__name__
            raise UserError(f"{path}: expected {expected} with {name} {tuple(tensor.shape)}, found {found}")
    model.load_state_dict(state, strict=False)  # but for the counts of batches every name was compared above
    return model.eval().requires_grad_(False)
