"""Stage `evaluation`: every figure and every picture of one variant with one seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vaebm.config import STAGES, EvaluationSettings, SamplesSettings
from vaebm.config.yaml_files import read_settings
from vaebm.data import open_images
from vaebm.evaluation import detection, ood, plots, sampling_time
from vaebm.evaluation.classifier import to_float
from vaebm.evaluation.extractors import Extractor, open_extractor
from vaebm.evaluation.likelihood import estimate
from vaebm.evaluation.measurements import fidelity_figures, likelihood_figures
from vaebm.evaluation.quality_along_chain import against_steps
from vaebm.evaluation.reference import read_reference
from vaebm.measures import modes
from vaebm.measures.frechet import Statistics, frechet_distance
from vaebm.model import VAEBM, Estimates
from vaebm.plots import image_grid
from vaebm.records.metrics import named
from vaebm.samples import grey_levels
from vaebm.system import provenance
from vaebm.system.checkpoint import load_model
from vaebm.system.errors import UserError
from vaebm.system.files import write_json

TRAIN = 3000
"""Training images, at most, that the ELBO is estimated on: the first."""


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
            raise UserError(
                f"{metrics}: expected a path results/EXPERIMENT/VARIANT/seedK/evaluation/metrics.json, found another"
            )
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
            part = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise UserError(f"{path}: expected samples {expected}, found no file; `vaebm samples` makes it") from None
        except (ValueError, EOFError, OSError):
            raise UserError(
                f"{path}: expected samples {expected}, found a file that is not a whole .npy array; remove it and sample again"
            ) from None
        if part.dtype != np.uint8 or part.shape[1:] != (height, width, channels):
            raise UserError(
                f"{path}: expected samples {expected}, found {part.shape} {part.dtype}; remove it and sample again"
            )
        parts.append(part)
    if (found := sum(map(len, parts))) != count:
        raise UserError(
            f"{shards[0].parent}: expected {count} samples, as samples.yaml says, found {found} in {len(shards)} shards"
        )
    samples = np.empty(
        (count, *shape), dtype=np.uint8
    )  # filled from memory maps: large samples are gigabytes, and are held once
    np.concatenate([part.transpose(0, 3, 1, 2) for part in parts], out=samples)
    return torch.from_numpy(samples)


def _training(model: Path) -> dict[str, dict[str, Any]]:
    """The stage that made `model` → what it says of itself, but for its settings, which stand in their own file.

    Raises:
        UserError: there is no such record, or the settings were changed while the training ran.
    """
    path = model.with_name("training.json")
    try:
        content = json.loads(path.read_text())
        stage = content["stage"]
        trained = STAGES[stage].model_validate(content["settings"])
    except (FileNotFoundError, ValueError, KeyError):
        raise UserError(
            f"{path}: expected the record of the training, found none or a damaged file; run the training again"
        ) from None
    settings = model.with_name(f"{stage}.yaml")
    if trained != read_settings(settings, STAGES[stage])[1]:
        raise UserError(
            f"{model}: expected a model trained with {settings}, found one trained with other settings; remove it and run again"
        )
    return {stage: {key: value for key, value in content.items() if key not in {"settings", "data"}}}


def _given(classifier: Path | None, settings: Path) -> Path:
    """The model of the classifier, which `settings` ask for."""
    if classifier is None:
        raise UserError(f"{settings}: expected the model of the classifier beside it (--classifier), found none")
    return classifier


def lacking(ood_sets: list[str], reason: str) -> dict[str, str]:
    """The figures that a model without log p(x) has not, each with the reason; empty where it has all of them."""
    return dict.fromkeys(
        ["ELBO", "ELBO-train", "log-likelihood", *detection.lacking(ood_sets)] if reason else [], reason
    )


def run(
    settings: Path,
    data: Path,
    nvae: Path,
    energy: Path | None,
    extractor: Path,
    classifier: Path | None,
    reference: Path,
    shards: list[Path],
    metrics: Path,
    ood_data: Sequence[Path] = (),
    device: torch.device | str = "cpu",
) -> None:
    """Measure the samples and the models of one run; write `metrics`, and pictures/ beside it.

    Args:
        settings: evaluation.yaml.
        data: manifest of the images.
        nvae: model file of the NVAE, or of the NVAE whose decoder was trained further as a generator.
        energy: model file of the energy; None for a model without.
        extractor: settings file of the extractor.
        classifier: model file of the classifier, where that is the extractor or tells the modes of stacks.
        reference: what `reference.reference` wrote.
        shards: the samples; samples.yaml stands beside them.
        metrics: results/<experiment>/<variant>/seed<k>/evaluation/metrics.json.
        ood_data: manifests of the data sets that held-out images are told from, data/<name>/manifest.json.
        device: that the networks run on.

    Raises:
        UserError: a file is missing, damaged, or does not belong to the others.
    """
    where = Run.of(metrics)
    own = energy or nvae
    if own.absolute().parent != where.folder:
        raise UserError(
            f"{metrics}: expected the model of this run, {where.folder.name}/model.pt of the variant {where.variant}, found {own}"
        )
    seed, chosen = read_settings(settings, EvaluationSettings)
    sampling_seed, sampling = read_settings(shards[0].with_name("samples.yaml"), SamplesSettings)
    judge, images = open_extractor(extractor, classifier, device), open_images(data)
    if judge.kind != chosen.extractor:
        raise UserError(
            f"{extractor}: expected the extractor {chosen.extractor}, as {settings} says, found {judge.kind}"
        )
    statistics = read_reference(reference, images.hash, judge.weights)
    samples = read_samples(shards, images.shape, sampling.count)
    model, folder = VAEBM.load(nvae, energy, device), metrics.parent / "pictures"
    model.follow(sampling)

    trained = {**_training(nvae), **({} if energy is None else _training(energy))}
    reason = (
        "a generator has no posterior, and no estimate of log p(x)" if "wgan" in trained else model.without_likelihood
    )

    def estimated(pixels: Tensor) -> Estimates:
        return Estimates(None, None, None) if "wgan" in trained else estimate(model, pixels, seed, chosen.elbo_samples)

    train, held_out = images.split("train", TRAIN)[0], images.split("heldout")[0]
    of_held_out, of_train = estimated(held_out), estimated(train)
    training = detection.scores(of_train)
    inside = detection.with_typicality(detection.scores(of_held_out), training)
    outside: dict[str, detection.Scores] = {}
    shown, sources, manifests = [held_out[:16]], {}, {path.parent.name: path for path in ood_data}
    for name, other in chosen.ood_sets.items() if inside else []:
        there = ood.make(name, other, images, manifests)
        outside[name] = detection.with_typicality(detection.scores(estimated(there.images)), training)
        shown.append(there.images[:16])
        sources[name] = {"images": len(there.images), **there.source}
    judged = judge.judge(samples)
    figures = fidelity_figures(judged, statistics, chosen, seed, device)
    distance_name = named("FD", judge.kind)
    if not sampling.stretch:  # what the published program's way of writing images does to the distance
        again = judge.features(
            samples, lambda image: grey_levels(to_float(image[None]), stretch=True)[0].permute(2, 0, 1)
        )
        figures[f"{distance_name}-stretched"] = {
            "value": frechet_distance(Statistics.of(again), statistics.train),
            "samples": len(samples),
        }
    telling = judge  # the modes of stacks, if these are any
    if chosen.classifier is not None and judge.kind != "classifier":
        telling = Extractor.of("classifier", _given(classifier, settings), device)
    if (depth := telling.depth(images.shape)) > 1:
        told = judged if telling is judge else telling.judge(samples)
        law = modes.law_of(np.asarray(images.labels[slice(*images.splits["train"])]), depth, told.logits.shape[2])
        counts = modes.histogram(modes.modes_of(told.logits), law)
        figures |= modes.figures(counts, law, chosen.bootstrap, seed)
        plots.modes(counts, law, seed, folder / "modes.png")
    figures |= likelihood_figures(model.nvae, of_held_out, of_train, chosen.elbo_samples)
    ood_figures = detection.ood_figures(inside, outside, chosen.bootstrap, seed)
    figures |= detection.in_the_table(ood_figures, list(outside))
    figures |= (took := sampling_time.figures(shards))

    image_grid(to_float(samples[: plots.GRID]), folder / "samples.png")
    plots.neighbours(
        samples, judged.features, images.view("train"), statistics.train_features, folder / "neighbours.png"
    )
    if outside:
        image_grid(to_float(torch.cat(shown)), folder / "sets.png", columns=16)
        plots.ood(inside, outside, figures, folder / "ood.png")
    models = {"nvae": load_model(nvae, "nvae")["hash"], **{one.kind: one.weights for one in (judge, telling)}}
    along_chain = {}
    if energy is not None:
        models["energy"] = load_model(energy, "energy")["hash"]
        plots.chains(model, sampling_seed, sampling.chain, folder)

        def distance(after: Tensor) -> float:
            return frechet_distance(Statistics.of(judge.features(after)), statistics.train)

        found = against_steps(model, chosen.steps, sampling, sampling_seed, distance_name, distance)
        plots.steps(found, distance_name, sampling.chain.steps, folder / "steps.png")
        along_chain["steps"] = found
    kind = (
        dict.fromkeys(("potential", "positives"))
        if energy is None
        else {"potential": model.kind, "positives": model.positives}
    )
    record = {
        "experiment": where.experiment,
        "variant": where.variant,
        "seed": seed,
        "metrics": figures,
        **along_chain,
        "ood": {"sets": sources, "figures": ood_figures},
        "without": {
            **lacking(list(chosen.ood_sets), reason),
            **({} if took else {sampling_time.NAME: "its samples have no record of the time they took"}),
        },
        "real": {distance_name: {"value": statistics.real, "samples": len(held_out)}},
        "extractor": judge.describe(images.shape),
        "modes_by": None if telling is judge else telling.describe(images.shape),
        "chain": {**sampling.chain.model_dump(), **kind, "stretch": sampling.stretch},
        "data": images.hash,
        "users": images.users,
        **provenance.merged([*trained.values(), provenance.commit()]),
        "versions": provenance.versions(),
        "models": models,
        "training": trained,
    }
    write_json(metrics, record)
