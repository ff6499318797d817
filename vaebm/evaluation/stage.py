"""Stage `evaluation`: all metrics and plots of one variant with one seed."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaebm.config import METRICS
from vaebm.evaluation import detection, ood, plots, sampling_time
from vaebm.evaluation.classifier import to_float
from vaebm.evaluation.detection import Scores
from vaebm.evaluation.inputs import Files, Inputs, load
from vaebm.evaluation.measurements import Measurements, measure_fidelity, measure_likelihood
from vaebm.evaluation.quality_along_chain import quality_along_chain
from vaebm.measures import modes
from vaebm.measures.bootstrap import Features
from vaebm.measures.modes import Law
from vaebm.model import Estimates
from vaebm.plots import image_grid
from vaebm.records.files import write_record
from vaebm.records.metrics import DETECTION, ELBO, ELBO_TRAIN, FD_STRETCHED, LOG_LIKELIHOOD, MEANINGS, SECONDS_PER_50
from vaebm.records.metrics import metric as registered_metric
from vaebm.records.results import AlongChain, ChainRecord, Measurement, OODRecord, OODSource, RunRecord
from vaebm.samples import grey_levels
from vaebm.system import provenance
from vaebm.system.errors import UserError
from vaebm.system.plugins import imported

TRAIN = 3000
"""Maximum number of training images for the ELBO: the first ones."""


def unavailable_metrics(ood_sets: list[str], reason: str) -> dict[str, str]:
    """Metrics that a model without log p(x) lacks → `reason`; none for an empty reason."""
    names = [one.pattern for one in (ELBO, ELBO_TRAIN, LOG_LIKELIHOOD)]
    names += [DETECTION[quantity, ""].named(name) for quantity in MEANINGS for name in ood_sets]
    return dict.fromkeys(names, reason) if reason else {}


class Results(NamedTuple):
    """All measurements of one run, and what its plots show."""

    metrics: Measurements
    ood: Measurements
    """Every metric of every score and out-of-distribution set."""
    features: Features
    """Features of the samples, (N, D)."""
    modes: tuple[NDArray[np.int64], Law] | None
    """Samples per mode and the data's law, for stacks."""
    inside: Scores
    outside: dict[str, Scores]
    shown: list[Tensor]
    """The first held-out images, then the first images of each set."""
    sources: dict[str, OODSource]
    """Out-of-distribution set → its size and origin."""
    along_chain: AlongChain | None
    """Quality against the number of steps; None without an energy."""


def measure(inputs: Inputs) -> Results:
    """Compute every metric of the run."""
    seed, chosen, sampling, model = inputs.seed, inputs.settings, inputs.sampling, inputs.model
    images, samples, extractor = inputs.images, inputs.samples, inputs.extractor

    def estimated(pixels: Tensor) -> Estimates:
        if "wgan" in inputs.trained:
            return Estimates(None, None, None)
        return model.estimate(pixels, seed, chosen.elbo_samples)

    held_out, train = images.split("heldout")[0], images.split("train", TRAIN)[0]
    of_held_out, of_train = estimated(held_out), estimated(train)
    training = detection.scores(of_train)
    inside = detection.with_typicality(detection.scores(of_held_out), training)
    outside: dict[str, Scores] = {}
    shown, sources = [held_out[:16]], {}
    for name, other in chosen.ood_sets.items() if inside else []:
        others, sources[name] = ood.make_ood_set(name, other, images, inputs.manifests)
        outside[name] = detection.with_typicality(detection.scores(estimated(others)), training)
        shown.append(others[:16])

    output = extractor.extract(samples)
    metrics = measure_fidelity(output, inputs.reference, chosen, seed, extractor.device)
    if not sampling.stretch:  # the distance of images written as the published program writes them
        stretched = extractor.features(
            samples, lambda image: grey_levels(to_float(image[None]), stretch=True)[0].permute(2, 0, 1)
        )
        distance = Measurement(value=inputs.distance(stretched), samples=len(samples))
        metrics[FD_STRETCHED.named(extractor.kind)] = distance
    shown_modes = None
    if (depth := inputs.mode_extractor.depth(images.shape)) > 1:
        logits = (output if inputs.mode_extractor is extractor else inputs.mode_extractor.extract(samples)).logits
        law = modes.law_of(np.asarray(images.labels[slice(*images.splits["train"])]), depth, logits.shape[2])
        counts = modes.histogram(modes.modes_of(logits), law)
        metrics |= modes.measure_modes(counts, law, chosen.bootstrap, seed)
        shown_modes = counts, law
    metrics |= measure_likelihood(model.nvae, of_held_out, of_train, chosen.elbo_samples)
    of_sets = detection.measure_ood(inside, outside, chosen.bootstrap, seed)
    metrics |= detection.in_the_table(of_sets)
    metrics |= sampling_time.measure_sampling_time(inputs.shards)
    for one in chosen.metrics:
        if registered_metric(one.name) is not METRICS[one.name]:
            raise UserError(
                f"evaluation.metrics: {one.name} is a metric of this program; the plug-in needs another name"
            )
        found = imported(METRICS[one.name].measure)(inputs, one)
        value = found if isinstance(found, Measurement) else Measurement(value=float(found), samples=len(samples))
        metrics[one.name] = value
    along_chain = None
    if model.energy is not None:
        along_chain = quality_along_chain(
            model, chosen.steps, sampling, inputs.sampling_seed, inputs.distance_name,
            lambda after: inputs.distance(extractor.features(after)),
        )  # fmt: skip
    return Results(metrics, of_sets, output.features, shown_modes, inside, outside, shown, sources, along_chain)


def draw(inputs: Inputs, results: Results, folder: Path) -> None:
    """Write all plots of the run into `folder`."""
    samples, reference = inputs.samples, inputs.reference
    image_grid(to_float(samples[: plots.GRID]), folder / "samples.png")
    train = inputs.images.view("train")
    plots.neighbours(samples, results.features, train, reference.train_features, folder / "neighbours.png")
    if results.modes is not None:
        plots.modes(*results.modes, inputs.seed, folder / "modes.png")
    if results.outside:
        image_grid(to_float(torch.cat(results.shown)), folder / "sets.png")
        plots.ood(results.inside, results.outside, results.metrics, folder / "ood.png")
    if results.along_chain is not None:
        chain = inputs.sampling.chain
        plots.chains(inputs.model, inputs.sampling_seed, chain, folder)
        plots.steps(results.along_chain, chain.steps, folder / "steps.png")


def record(inputs: Inputs, results: Results) -> RunRecord:
    """The content of metrics.json."""
    images, sampling, model = inputs.images, inputs.sampling, inputs.model
    unavailable = unavailable_metrics(list(inputs.settings.ood_sets), inputs.no_likelihood_reason)
    if SECONDS_PER_50.pattern not in results.metrics:
        unavailable[SECONDS_PER_50.pattern] = "its samples have no record of the time they took"
    potential, positives = (model.potential_kind, model.positives) if model.energy is not None else (None, None)
    heldout = Measurement(value=inputs.reference.real, samples=len(images.view("heldout")))
    separate = inputs.mode_extractor is not inputs.extractor
    experiment, variant, _ = inputs.folder.parts[-3:]
    return RunRecord(
        experiment=experiment,
        variant=variant,
        seed=inputs.seed,
        metrics=results.metrics,
        steps=results.along_chain,
        ood=OODRecord(sets=results.sources, figures=results.ood),
        without=unavailable,
        real={inputs.distance_name: heldout},
        extractor=inputs.extractor.describe(images.shape),
        modes_by=inputs.mode_extractor.describe(images.shape) if separate else None,
        chain=ChainRecord(**dict(sampling.chain), potential=potential, positives=positives, stretch=sampling.stretch),
        data=images.hash,
        users=images.users,
        **provenance.merged([*map(dict, inputs.trained.values()), provenance.commit()]),
        versions=provenance.versions(),
        plugins=inputs.plugins,
        models=inputs.hashes,
        training=inputs.trained,
    )


def run(files: Files, device: torch.device | str = "cpu") -> None:
    """Evaluate one run: load → measure → draw → record. Writes files.metrics and pictures/ next to it.

    Raises:
        UserError: a file is missing, damaged, or does not belong to the others.
    """
    inputs = load(files, device)
    results = measure(inputs)
    draw(inputs, results, files.metrics.parent / "pictures")
    write_record(files.metrics, record(inputs, results))
