"""VAEBM: a frozen NVAE and an energy network, with sampling, scores and latent space."""

from vaebm.model.pixel_ebm import PixelEBM
from vaebm.model.scores import Estimates
from vaebm.model.vaebm import NO_CHAIN, VAEBM, build_model
from vaebm.noise import sample_noise

__all__ = ["NO_CHAIN", "VAEBM", "Estimates", "PixelEBM", "build_model", "sample_noise"]
