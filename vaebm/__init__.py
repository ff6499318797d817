"""VAEBM: an energy-based model on a hierarchical VAE (Xiao, Kreis, Kautz, Vahdat, ICLR 2021).

from vaebm import VAEBM
model = VAEBM.from_results("results/digits/vaebm")
images = model.sample(64, seed=0)       # (64, C, H, W) in [0, 1]
scores = model.score(images)            # (64,), higher is more in-distribution
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vaebm.energy.network import load_energy
    from vaebm.model import VAEBM
    from vaebm.nvae.model import load_nvae

_PUBLIC = {"VAEBM": "vaebm.model", "load_nvae": "vaebm.nvae.model", "load_energy": "vaebm.energy.network"}

__all__ = ["VAEBM", "load_energy", "load_nvae"]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used: `import vaebm.config` must not import torch."""
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    if name == "__version__":
        return import_module("importlib.metadata").version("vaebm")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
