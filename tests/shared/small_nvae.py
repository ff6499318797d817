"""A small NVAE in double precision."""

import math

import torch

from vaebm.config import NVAENetworkSettings
from vaebm.nvae.flows import FlowCell
from vaebm.nvae.layers import BatchNorm
from vaebm.nvae.model import NVAE

DOUBLE = torch.float64


def network(**changes: object) -> NVAENetworkSettings:
    """A small architecture."""
    base = {
        "channels_encoder": 4,
        "channels_decoder": 4,
        "groups": [2, 1],
        "latents": 2,
        "preprocess_blocks": 1,
        "preprocess_cells": 2,
        "postprocess_cells": 2,
    }
    return NVAENetworkSettings.model_validate(
        base | {"cells_encoder": 1, "cells_decoder": 1, "architecture": "res_bnswish"} | changes
    )


def build(shape: tuple[int, int, int] = (1, 8, 8), **changes: object) -> NVAE:
    """A small network in double precision and eval mode, with every parameter moved off its special initial value."""
    torch.manual_seed(0)
    nvae = NVAE(network(**changes), shape).double().eval()
    with torch.no_grad():
        for layer in nvae.modules():
            if isinstance(layer, BatchNorm):
                layer.running_mean.normal_(0, 0.3)
                layer.running_var.uniform_(0.5, 2)
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(0, 0.2)
            if isinstance(layer, FlowCell):
                layer.shift.log_weight_norm.add_(math.log(10))
                layer.shift.bias.normal_(0, 0.2)
    return nvae
