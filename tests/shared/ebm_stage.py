"""Settings of a small energy stage, and the NVAE below it."""

from __future__ import annotations

from typing import Any

import torch

from vaebm.config import NVAENetworkSettings
from vaebm.nvae.model import NVAE
from vaebm.system.device import seeded, to_device_channels_last

NETWORK: dict[str, Any] = {
    "channels_encoder": 8, "channels_decoder": 8, "groups": [2, 1], "latents": 2, "preprocess_blocks": 1,
    "preprocess_cells": 1, "postprocess_cells": 1, "cells_encoder": 1, "cells_decoder": 1,
}  # fmt: skip


SETTINGS: dict[str, Any] = {
    "network": {"channels": 8, "widths": [1, 2], "down": [0]},
    "chain": {"steps": 2, "step_size": 0.02},
    "training": {
        "iterations": 16,
        "batch": 4,
        "learning_rate": 1e-3,
        "energy_penalty": 0.01,
        "average_decay": 0.9,
        "snapshot_every": 4,
    },
    "guard": {"patience": 2},
    "selection": {"candidates": 2, "images": 40},
}


REPLAY = {"capacity": 10, "probability": 0.8, "anneal_iterations": 2}


def settings(**changes: Any) -> dict[str, Any]:
    """`SETTINGS` with other values; those of a section are merged into it."""
    return SETTINGS | {
        name: SETTINGS[name] | value if name in SETTINGS and isinstance(value, dict) else value
        for name, value in changes.items()
    }


def make_nvae(bits: int = 8) -> NVAE:
    """Untrained, as its training would leave it: frozen, in evaluation mode; its posterior is not its prior."""
    with seeded(0):
        nvae = NVAE(NVAENetworkSettings.model_validate(NETWORK | {"bits": bits}), (1, 8, 8))
    return to_device_channels_last(nvae.requires_grad_(False).eval(), torch.device("cpu"))
