"""VAEBM as one torch module, for what takes and keeps modules, as MLflow's registry of models does."""

from __future__ import annotations

from torch import Tensor, nn

from vaebm.model import VAEBM, PixelEBM


class Sampler(nn.Module):
    """The networks of a VAEBM as submodules, and what can be asked of it; `.to` and `.double` reach both networks.

    Args:
        model: whose networks these are; they are shared, not copied.

    Attributes:
        nvae: the NVAE.
        energy: the energy network; None for a model without.
        model: the pair.
    """

    def __init__(self, model: VAEBM):
        super().__init__()
        self.nvae = model.vae if isinstance(model, PixelEBM) else model.nvae
        self.energy = model.energy
        self.model = model
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """`VAEBM.score` with its defaults: images (B, C, H, W) in [0, 1] → (B,), higher is more in-distribution."""
        return self.model.score(images)

    def sample(self, count: int, seed: int = 0, *, steps: int | None = None, step_size: float | None = None) -> Tensor:
        """`VAEBM.sample`: images (count, C, H, W) in [0, 1]; without `steps` and `step_size` those of the run's samples."""
        return self.model.sample(count, seed, steps=steps, step_size=step_size)
