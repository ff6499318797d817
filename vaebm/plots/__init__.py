"""Every picture: grids of images, training curves, histograms."""

from vaebm.plots.charts import (
    against_counts,
    confusion,
    histograms,
    read_history,
    sorted_counts,
    step_curves,
    training_curves,
)
from vaebm.plots.images import BACKGROUND, chain_strip, image_grid, tile

__all__ = [
    "BACKGROUND",
    "against_counts",
    "chain_strip",
    "confusion",
    "histograms",
    "image_grid",
    "read_history",
    "sorted_counts",
    "step_curves",
    "tile",
    "training_curves",
]
