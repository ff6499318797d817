"""All plots: grids of images, training curves, histograms."""

from vaebm.plots.charts import against_counts as against_counts
from vaebm.plots.charts import confusion as confusion
from vaebm.plots.charts import histograms as histograms
from vaebm.plots.charts import read_history as read_history
from vaebm.plots.charts import roc as roc
from vaebm.plots.charts import sorted_counts as sorted_counts
from vaebm.plots.charts import step_curves as step_curves
from vaebm.plots.charts import training_curves as training_curves
from vaebm.plots.images import BACKGROUND as BACKGROUND
from vaebm.plots.images import image_grid as image_grid
