"""Precision of the networks: float32, TF32 and bfloat16."""

import torch

from vaebm.system.errors import UserError

ROUNDED = ("tf32", "bfloat16")
"""Settings under which TF32 is enabled for float32 matrix products and convolutions."""


def set_tf32(allowed: bool) -> None:
    """Enable or disable TF32 (factors rounded to ten bits) for float32 convolutions and matrix products.

    torch's default enables it for convolutions only.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def float32_precision() -> tuple[str, str]:
    """Current float32 precision of matrix products and of cuDNN convolutions; "tf32": rounded."""
    convolutions = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]  # defined while torch loads
    return torch.backends.cuda.matmul.fp32_precision, convolutions


def chain_dtype(precision: str) -> torch.dtype | None:
    """Type of the networks' features within chains for a precision setting; None: type of the weights."""
    return torch.bfloat16 if precision == "bfloat16" else None


def set_precision(precision: str, device: torch.device, key: str) -> None:
    """Set the process-wide part of the precision setting `key`, and check that the device supports it.

    Raises:
        UserError: bfloat16 or double precision on a GPU without it.
    """
    if precision == "float64" and device.type == "mps":
        raise UserError(f"{key}: an Apple GPU has no double precision; choose float32")
    wanted = precision == "bfloat16" and device.type == "cuda"
    if wanted and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"{key}: this GPU has no bfloat16; choose float32")
    set_tf32(precision in ROUNDED)
