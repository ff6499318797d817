"""Files of random weights in the layout of published ones."""

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from vaebm.config import weights
from vaebm.evaluation import dinov2
from vaebm.evaluation.extractors import torch_fidelity
from vaebm.system.device import seeded

INCEPTION = sys.modules[torch_fidelity.FeatureExtractorInceptionV3.__module__]


@contextmanager
def random_inception(path: Path) -> Iterator[None]:
    """Write a file with all names and shapes of the standard one; within the context it has the expected hash."""
    with pytest.MonkeyPatch.context() as patch, seeded(0):
        patch.setattr(INCEPTION, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(INCEPTION.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        module = INCEPTION.FeatureExtractorInceptionV3("random", ["2048"])
        for layer in module.modules():
            if isinstance(layer, torch.nn.Conv2d):  # so that activations neither vanish nor grow from layer to layer
                torch.nn.init.kaiming_normal_(layer.weight)
    torch.save(module.state_dict(), path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "INCEPTION_SHA256", hashlib.sha256(path.read_bytes()).hexdigest()[:8])
        yield


def reduced_dinov2(patch: pytest.MonkeyPatch, path: Path) -> tuple[dinov2.DINOv2, Path]:
    """DINOv2 with two blocks of 64 channels, as long as `patch` lasts: the network read from a random file."""
    for name, value in {"WIDTH": 64, "LAYERS": 2, "HEADS": 4}.items():
        patch.setattr(dinov2, name, value)
    with seeded(0):
        network = dinov2.DINOv2()
        for name, tensor in network.named_parameters():
            if "gamma" in name or "token" in name:  # others than the same for all channels
                torch.nn.init.normal_(tensor)
    torch.save(network.state_dict(), path)
    return dinov2.load_dinov2(path), path
