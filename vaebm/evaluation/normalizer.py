"""log Z of a VAE with an energy, p(x) = p_vae(x) exp(−E(x)) / Z, and the log-likelihood that it gives (VAEBM eq. 4)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vaebm.chain.annealed import annealed_log_weights
from vaebm.config import EvaluationSettings
from vaebm.config.evaluation import AnnealedSettings
from vaebm.evaluation.measurements import Measurements
from vaebm.model import VAEBM, Estimates, sample_noise
from vaebm.noise import NoiseSource, batches
from vaebm.records.metrics import LOG_LIKELIHOOD_ANNEALED, LOG_LIKELIHOOD_ENERGY
from vaebm.records.results import Measurement, NormalizerRecord

ENOUGH = 20.0
"""Effective sample size below which log Z is no figure."""


def log_mean_exp(log_weights: Tensor) -> NormalizerRecord:
    """ln of the mean of weights (N,) with the mean Z, an estimate of log Z that is biased low (Jensen's inequality)."""
    each, draws = log_weights.double(), len(log_weights)
    total = each.logsumexp(0)
    effective = float((2 * total - (2 * each).logsumexp(0)).exp())
    error = math.sqrt(max(1 / effective - 1 / draws, 0.0)) if effective else math.inf
    log_z = float(total) - math.log(draws)
    return NormalizerRecord(log_z=log_z, standard_error=error, effective=effective, draws=draws, bias="low")


@torch.no_grad()
def importance(model: VAEBM, seed: int, draws: int, batch: int) -> NormalizerRecord:
    """Estimate log Z by Z = E[exp(−E(x))] over the first samples x of the NVAE, which include pixel noise."""
    assert model.energy is not None
    energies = []
    for part in batches(range(draws), batch):
        eps_z, eps_x = model.initial_noise(sample_noise(seed, part))
        energies.append(model.energy(model.decoder.decode(eps_z)[0].sample(eps_x)))
    return log_mean_exp(-torch.cat(energies))


def annealed(model: VAEBM, seed: int, settings: AnnealedSettings, batch: int) -> NormalizerRecord:
    """Estimate log Z by annealed importance sampling along β E(x) in noise space, from β = 0, the NVAE."""
    pair, weights = VAEBM(model.nvae, model.energy), list[Tensor]()
    count, size = settings.temperatures, settings.step_size
    for part in batches(range(settings.chains), batch):
        noise = NoiseSource(seed, "annealed", part)
        eps_z, eps_x = pair.initial_noise(noise)
        eps, potential = [*eps_z, eps_x], pair.chain_potential()
        weights.append(annealed_log_weights(potential, eps, temperatures=count, step_size=size, noise=noise))
    return log_mean_exp(torch.cat(weights))


class Normalized(NamedTuple):
    """Estimates of log Z, and what they give."""

    metrics: Measurements
    records: dict[str, NormalizerRecord]
    """Metric → its estimate of log Z."""
    without: dict[str, str]
    """Metric → why it is no figure."""


def measure_normalizer(
    model: VAEBM, settings: EvaluationSettings, of_held_out: Estimates, seed: int, batch: int
) -> Normalized:
    """log p(x) of held-out images in nats per dimension, for each estimate of log Z with enough effective samples.

    With an energy on noise there is none: both estimates begin at samples of the NVAE's own prior.
    """
    if model.prior is not None:
        return Normalized({}, {}, {LOG_LIKELIHOOD_ENERGY.pattern: "log Z is not estimated with an energy on noise"})
    records = {LOG_LIKELIHOOD_ENERGY.pattern: importance(model, seed, settings.steps.images, batch)}
    if settings.annealed is not None:
        records[LOG_LIKELIHOOD_ANNEALED.pattern] = annealed(model, seed, settings.annealed, batch)
    score, unit = of_held_out.score, "nats per dimension, density on [-1, 1]"
    metrics: Measurements = {}
    without = {}
    for name, one in records.items():
        if one.effective >= ENOUGH:
            value = (float(score.mean()) - one.log_z) / model.nvae.dimensions
            metrics[name] = Measurement(value=value, samples=len(score), draws=settings.elbo_samples, unit=unit)
        else:
            found = f"the effective sample size of the {one.draws:,} draws is {one.effective:.3g}, below {ENOUGH:g}"
            without[name] = f"its estimate of log Z is none: {found}"
    return Normalized(metrics, records, without)
