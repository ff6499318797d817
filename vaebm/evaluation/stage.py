"""Stage `evaluation`: every figure and every picture of one variant with one seed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaebm import VAEBM, plots, provenance
from vaebm.checkpoint import load_model, write_json
from vaebm.config import STAGES, ChainSettings, EvaluationSettings, SamplesSettings, UserError
from vaebm.data import open_images
from vaebm.evaluation import fidelity, ood
from vaebm.evaluation.classifier import to_float
from vaebm.evaluation.likelihood import Likelihood, estimate
from vaebm.noise import derive
from vaebm.nvae.model import NVAE
from vaebm.settings import read_settings

GRID, CHAINS = 160, 10
"""Images of a grid of samples; chains that are shown step by step."""

Energy = Callable[[Tensor], Tensor]
"""Energies (B,) of images (B, C, H, W) uint8."""
Figures = dict[str, dict[str, Any]]
Scores = dict[str, NDArray[np.float64]]


class Run(NamedTuple):
    """Where a run stands: results/<experiment>/<variant>/seed<k>."""

    experiment: str
    variant: str
    folder: Path

    @classmethod
    def of(cls, metrics: Path) -> Run:
        """The run that the file results/<experiment>/<variant>/seed<k>/evaluation/metrics.json belongs to."""
        folder = metrics.absolute().parent.parent
        if not folder.name.startswith("seed") or metrics.parent.name != "evaluation":
            raise UserError(f"{metrics}: expected a path results/EXPERIMENT/VARIANT/seedK/evaluation/metrics.json, found another")
        return cls(folder.parent.parent.name, folder.parent.name, folder)


def read_samples(shards: list[Path], shape: tuple[int, int, int], count: int) -> Tensor:
    """The samples (N, C, H, W) uint8 in the order of the shards.

    Args:
        shards: .npy files (n, H, W, C) uint8.
        shape: (C, H, W) that they must have.
        count: N that they must have together.

    Raises:
        UserError: a missing or damaged file, images of another form, or another number of them.
    """
    channels, height, width = shape
    parts = []
    for path in shards:
        expected = f"(n, {height}, {width}, {channels}) uint8"
        try:
            part = np.load(path, allow_pickle=False)
        except FileNotFoundError:
            raise UserError(f"{path}: expected samples {expected}, found no file; `vaebm samples` makes it") from None
        except (ValueError, EOFError, OSError):
            raise UserError(f"{path}: expected samples {expected}, found a file that is not a whole .npy array; remove it and sample again") from None
        if part.dtype != np.uint8 or part.shape[1:] != (height, width, channels):
            raise UserError(f"{path}: expected samples {expected}, found {part.shape} {part.dtype}; remove it and sample again")
        parts.append(part)
    samples = np.concatenate(parts)
    if len(samples) != count:
        raise UserError(f"{shards[0].parent}: expected {count} samples, as samples.yaml says, found {len(samples)} in {len(shards)} shards")
    return torch.from_numpy(samples).permute(0, 3, 1, 2).contiguous()


def fidelity_figures(samples: Tensor, reference: fidelity.Reference, extractor: fidelity.Extractor, settings: EvaluationSettings, seed: int) -> Figures:
    """Fréchet distances to training and to held-out images, and KID to training images."""
    features = extractor.features(samples)
    statistics = fidelity.Statistics.of(features)
    mean, spread = fidelity.kid(features, reference.train_features, settings.kid_subsets, settings.kid_subset_size, derive(seed, "kid"))
    kid = {"value": mean, "samples": len(samples), "subsets": settings.kid_subsets, "subset_size": settings.kid_subset_size, "spread_over_subsets": spread}
    return {
        "FD-classifier": {"value": fidelity.frechet_distance(statistics, reference.train), "samples": len(samples)},
        "FD-classifier-heldout": {"value": fidelity.frechet_distance(statistics, reference.heldout), "samples": len(samples)},
        "KID-classifier": kid,
    }


@torch.no_grad()
def scores(likelihood: Likelihood | None, images: Tensor, energy: Energy | None) -> Scores:
    """Scores of images (N, C, H, W) uint8, higher for what looks in-distribution.

    Args:
        likelihood: log p(x) of the images; None for a model without.
        energy: E(x); None for a model without.

    Returns:
        "" → log p(x) − E(x), or log p(x) of a model without an energy; with an energy also "energy" → −E(x), and with both
        "likelihood" → log p(x).

    Raises:
        UserError: a score is not finite.
    """
    found: Scores = {}
    if energy is not None:
        energies = torch.cat([energy(batch) for batch in torch.split(images, fidelity.BATCH)]).double().numpy()
        if not np.isfinite(energies).all():
            raise UserError(f"evaluation: expected finite energies, found {np.sum(~np.isfinite(energies))} others: the training of the energy diverged")
        found["energy"] = -energies
    if likelihood is not None:
        log_p = likelihood.importance.numpy()
        found = {"": log_p + found["energy"], **found, "likelihood": log_p} if found else {"": log_p}
    return found


def ood_figures(inside: Scores, outside: dict[str, Scores], samples: int) -> Figures:
    """AUROC of every score for held-out images against every set: AUROC-<set>, and -energy and -likelihood beside it."""
    return {
        "-".join(filter(None, ("AUROC", name, kind))): {"value": ood.auroc(inside[kind], found[kind]), "samples": samples}
        for name, found in outside.items()
        for kind in inside
    }


def _ood_pictures(inside: Scores, outside: dict[str, Scores], figures: Figures, folder: Path) -> None:
    whole = "log p(x) − E(x)" if "energy" in inside else "log p(x)"
    names = {"": whole, "energy": "−E(x)", "likelihood": "log p(x)"}
    panels = {}
    for name, found in outside.items():
        for kind in inside:
            area = figures["-".join(filter(None, ("AUROC", name, kind)))]["value"]
            panels[f"{name}: {names[kind]}, AUROC {area:.3f}"] = {"held-out digits": inside[kind], name: found[kind]}
    plots.histograms(panels, folder / "ood.png", "score")


def _chain_pictures(model: VAEBM, seed: int, chain: ChainSettings, folder: Path) -> None:
    steps = model.chain(GRID, seed=seed, steps=chain.steps, step_size=chain.step_size)
    plots.image_grid(steps[0], folder / "before.png")
    plots.image_grid(steps[-1], folder / "after.png")
    plots.chain_strip([images[:CHAINS] for images in steps], folder / "chain.png")


def likelihood_figures(network: NVAE, held_out: Likelihood, train: Likelihood, draws: int) -> Figures:
    """ELBO on held-out and training images (NVAE eq. 1) and the importance-weighted log-likelihood of held-out ones, per dimension.

    In nats: for a discrete decoder of a probability, and then also in bits, lower is better; for the Gaussian one of the
    density of y = 2x − 1, which makes no bits per dimension.
    """
    size, discrete = network.dimensions, network.settings.decoder != "normal"
    unit = "nats per dimension" if discrete else "nats per dimension, density on [-1, 1]"
    values = {"ELBO": held_out.elbo, "ELBO-train": train.elbo, "log-likelihood": held_out.importance}
    means = {name: float(each.mean()) / size for name, each in values.items()}
    figures: Figures = {name: {"value": means[name], "samples": len(each), "draws": draws, "unit": unit} for name, each in values.items()}
    if discrete:
        figures["bits-per-dimension"] = {**figures["log-likelihood"], "value": -means["log-likelihood"] / math.log(2), "unit": "bits per dimension"}
    return figures


def _training(model: Path) -> dict[str, dict[str, Any]]:
    """The stage that made `model` → what it says of itself, but for its settings, which stand in their own file.

    Raises:
        UserError: there is no such record, or the settings were changed while the training ran.
    """
    path = model.with_name("training.json")
    try:
        content = json.loads(path.read_text())
        stage, trained = content["stage"], content["settings"]
        expected = STAGES[stage]
    except (FileNotFoundError, ValueError, KeyError):
        raise UserError(f"{path}: expected the record of the training, found none or a damaged file; run the training again") from None
    settings = model.with_name(f"{stage}.yaml")
    if trained != read_settings(settings, expected)[1].model_dump():
        raise UserError(f"{model}: expected a model trained with {settings}, found one trained with other settings; remove it and run again")
    return {stage: {key: value for key, value in content.items() if key not in {"settings", "data"}}}


def _origin(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The commits that the models and their figures come from, and whether any of the programs was changed since its commit."""
    changed = [part["changed"] for part in parts]
    return {"commit": sorted({part["commit"] for part in parts}), "changed": "unknown" if "unknown" in changed else any(changed)}


def lacking(ood_sets: Sequence[str], reason: str) -> dict[str, str]:
    """The figures that a model without log p(x) has not, each with the reason; empty where it has all of them."""
    names = ["ELBO", "ELBO-train", "log-likelihood", *(f"AUROC-{name}" for name in ood_sets)] if reason else []
    return dict.fromkeys(names, reason)


def run(settings: Path, data: Path, nvae: Path, energy: Path | None, classifier: Path, reference: Path, shards: list[Path], metrics: Path) -> None:
    """Measure the samples and the models of one run; write `metrics`, and pictures/ beside it.

    Args:
        settings: evaluation.yaml.
        data: manifest of the images.
        nvae: model file of the NVAE, or of the NVAE whose decoder was trained further as a generator.
        energy: model file of the energy; None for a model without.
        classifier: model file of the classifier; reference: what `fidelity.reference` wrote.
        shards: the samples; samples.yaml stands beside them.
        metrics: results/<experiment>/<variant>/seed<k>/evaluation/metrics.json.

    Raises:
        UserError: a file is missing, damaged, or does not belong to the others.
    """
    where = Run.of(metrics)
    own = energy or nvae
    if own.absolute().parent != where.folder:
        raise UserError(f"{metrics}: expected the model of this run, {where.folder.name}/model.pt of the variant {where.variant}, found {own}")
    seed, chosen = read_settings(settings, EvaluationSettings)
    sampling_seed, sampling = read_settings(shards[0].with_name("samples.yaml"), SamplesSettings)
    images, extractor = open_images(data), fidelity.Extractor.of(classifier)
    statistics = fidelity.read_reference(reference, images.hash, extractor.weights)
    samples = read_samples(shards, images.shape, sampling.count)
    model, pictures = VAEBM.load(nvae, energy), metrics.parent / "pictures"
    network, network_energy = model.nvae, model.energy
    energies = None if network_energy is None else lambda batch: network_energy(network.as_input(batch))

    trained = {**_training(nvae), **({} if energy is None else _training(energy))}
    reason = "a generator has no posterior, and no estimate of log p(x)" if "wgan" in trained else model.without_likelihood

    def likelihood_of(pixels: Tensor) -> Likelihood | None:
        return None if reason else estimate(network, pixels, seed, draws)

    train, held_out = images.split("train")[0], images.split("heldout")[0]
    draws = chosen.elbo_samples
    held_out_likelihood, train_likelihood = likelihood_of(held_out), likelihood_of(train)
    inside = scores(held_out_likelihood, held_out, energies)
    outside: dict[str, Scores] = {}
    shown = [held_out[:16]]
    for name in chosen.ood if inside else []:
        pixels = torch.from_numpy(ood.make(name, held_out.permute(0, 2, 3, 1).numpy())).permute(0, 3, 1, 2)
        outside[name] = scores(likelihood_of(pixels), pixels, energies)
        shown.append(pixels[:16])
    figures = fidelity_figures(samples, statistics, extractor, chosen, seed)
    if held_out_likelihood is not None and train_likelihood is not None:
        figures |= likelihood_figures(network, held_out_likelihood, train_likelihood, draws)
    figures |= ood_figures(inside, outside, len(held_out))

    plots.image_grid(to_float(samples[:GRID]), pictures / "samples.png")
    if outside:
        plots.image_grid(to_float(torch.cat(shown)), pictures / "sets.png", columns=16)
        _ood_pictures(inside, outside, figures, pictures)
    models = {"nvae": load_model(nvae, "nvae")["hash"], "classifier": extractor.weights}
    if energy is not None:
        models["energy"] = load_model(energy, "energy")["hash"]
        _chain_pictures(model, sampling_seed, sampling.chain, pictures)
    record = {
        "experiment": where.experiment,
        "variant": where.variant,
        "seed": seed,
        "metrics": figures,
        "without": lacking(chosen.ood, reason),
        "real": {"FD-classifier": {"value": statistics.real, "samples": len(held_out)}},
        "extractor": extractor.describe(),
        "chain": {**sampling.chain.model_dump(), "potential": None if energy is None else model.kind},
        "data": images.hash,
        **_origin([*trained.values(), provenance.commit()]),
        "versions": provenance.versions(),
        "models": models,
        "training": trained,
    }
    write_json(metrics, record)
