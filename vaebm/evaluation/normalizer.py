"""log Z of a VAE with an energy, p(x) = p_vae(x) exp(−E(x)) / Z, and the log-likelihood that it gives (VAEBM eq. 4)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vaebm.chain.annealed import annealed_log_weights
from vaebm.config import EvaluationSettings, SamplesSettings
from vaebm.config.evaluation import AnnealedSettings
from vaebm.evaluation.measurements import Measurements
from vaebm.model import VAEBM, Estimates, sample_noise
from vaebm.noise import NoiseSource, batches
from vaebm.records.metrics import LOG_LIKELIHOOD_ANNEALED, LOG_LIKELIHOOD_ENERGY
from vaebm.records.results import Measurement, NormalizerRecord
from vaebm.system.shapes import PerImage

ENOUGH = 20.0
"""Effective sample size from which log Z is used: its standard error is at most √(1/20) = 0.22 nats to first order."""


def log_mean_exp(log_weights: Tensor) -> NormalizerRecord:
    """ln of the mean of weights (N,) with the mean Z, an estimate of log Z that is biased low (Jensen's inequality)."""
    each, draws = log_weights.double(), len(log_weights)
    total = each.logsumexp(0)
    effective = float((2 * total - (2 * each).logsumexp(0)).exp())
    error = math.sqrt(max(1 / effective - 1 / draws, 0.0))
    log_z = float(total) - math.log(draws)
    return NormalizerRecord(log_z=log_z, standard_error=error, effective=effective, draws=draws, bias="low")


@torch.no_grad()
def importance(model: VAEBM, seed: int, draws: int, batch: int) -> PerImage:
    """ln of weights exp(−E(x)) with the mean Z, for samples x of the NVAE, which include pixel noise: (draws,)."""
    energy, energies = model.prepared_energy(), []
    for part in batches(range(draws), batch):
        eps_z, eps_x = model.initial_noise(sample_noise(seed, part))
        energies.append(energy(model.decoder.decode(eps_z)[0].sample(eps_x)))
    return -torch.cat(energies)


def annealed(model: VAEBM, seed: int, settings: AnnealedSettings, batch: int) -> PerImage:
    """ln of weights with the mean Z, by annealing along β E(x) in noise space, from β = 0, the NVAE: (chains,)."""
    pair, weights = VAEBM(model.nvae, model.energy), list[Tensor]()
    count, size = settings.temperatures, settings.step_size
    for part in batches(range(settings.chains), batch):
        noise = NoiseSource(seed, "annealed", part)
        eps_z, eps_x = pair.initial_noise(noise)
        eps, potential = [*eps_z, eps_x], pair.chain_potential()
        weights.append(annealed_log_weights(potential, eps, temperatures=count, step_size=size, noise=noise))
    return torch.cat(weights)


class Normalized(NamedTuple):
    """Estimates of log Z, and what they give."""

    metrics: Measurements
    records: dict[str, NormalizerRecord]
    """Metric → its estimate of log Z."""
    without: dict[str, str]
    """Metric → why it has no value."""


def measure_normalizer(
    model: VAEBM, settings: EvaluationSettings, of_held_out: Estimates, seed: int, sampling: SamplesSettings
) -> Normalized:
    """log p(x) of held-out images in nats per dimension, for each estimate of log Z with enough effective samples.

    Importance sampling has as many draws as there are samples. An energy on noise has no estimate of log Z, because
    both estimates start from samples of the NVAE's own prior.
    """
    chains, found = settings.annealed, Normalized({}, {}, {})
    if model.prior is not None:
        names = [LOG_LIKELIHOOD_ENERGY.pattern, *[LOG_LIKELIHOOD_ANNEALED.pattern] * (chains is not None)]
        return found._replace(without=dict.fromkeys(names, "log Z is not estimated with an energy on noise"))
    weights = {LOG_LIKELIHOOD_ENERGY.pattern: importance(model, seed, sampling.count, sampling.batch)}
    if chains is not None:
        weights[LOG_LIKELIHOOD_ANNEALED.pattern] = annealed(model, seed, chains, sampling.batch)
    assert of_held_out.importance is not None and of_held_out.clean_energy is not None
    score, unit = of_held_out.importance - of_held_out.clean_energy, "nats per dimension, density on [-1, 1]"
    for name, each in weights.items():
        if bad := int((~each.isfinite()).sum()):
            found.without[name] = f"{bad:,} of the {len(each):,} draws of log Z have weights that are not finite"
            continue
        one = found.records[name] = log_mean_exp(each)
        if one.effective >= ENOUGH:
            value = (float(score.mean()) - one.log_z) / model.nvae.dimensions
            found.metrics[name] = Measurement(value=value, samples=len(score), draws=settings.elbo_samples, unit=unit)
        else:
            size = f"the effective sample size of the {one.draws:,} draws is {one.effective:.3g}, below {ENOUGH:g}"
            bound = math.floor(10 * (one.log_z - math.log(20))) / 10  # the mean weight exceeds 20 Z with at most 5 %
            found.without[name] = f"{size}; log Z is at least {bound:.1f} with 95 % probability (Markov)"
    return found
