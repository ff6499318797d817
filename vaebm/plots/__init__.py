"""Every picture: grids of images, training curves, histograms."""

from vaebm.plots.charts import (
    BACKGROUND,
    against_counts,
    chain_strip,
    confusion,
    histograms,
    image_grid,
    read_history,
    sorted_counts,
    step_curves,
    tile,
    training_curves,
)

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
