"""In how many bits the networks compute: what the settings call float32, tf32 and bfloat16."""

from __future__ import annotations

import torch

from vaebm.system.errors import UserError

ROUNDED = ("tf32", "bfloat16")
"""With these a GPU rounds the factors of convolutions and products of single precision to ten bits; bfloat16 is for what the settings say besides."""


def set_tf32(allowed: bool) -> None:
    """Whether GPUs round the factors of convolutions and matrix products of single precision to ten bits (TF32).

    torch by itself lets them do so in convolutions, not in products.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def rounding() -> tuple[str, str]:
    """What torch is set to in products and in convolutions, "tf32" where they are rounded; whoever has set it, and by whichever of torch's switches."""
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]  # torch makes it as it loads


def chain_type(precision: str) -> torch.dtype | None:
    """What the networks' features within chains are kept in, by a setting; None: what the weights are."""
    return torch.bfloat16 if precision == "bfloat16" else None


def set_precision(precision: str, device: torch.device, key: str) -> None:
    """Compute as a setting says, as far as that is a matter of the whole process.

    Args:
        precision: of the settings.
        key: where it stands, for the message.

    Raises:
        UserError: bfloat16 on a GPU that has none.
    """
    if (
        precision == "bfloat16"
        and device.type == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise UserError(f"{key}: this GPU has no bfloat16; choose float32")
    set_tf32(precision in ROUNDED)
