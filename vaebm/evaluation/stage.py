"""Stage `evaluation`: all metrics and plots of one variant with one seed."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vaebm.config import METRICS
from vaebm.evaluation import detection, measurements, ood, plots, sampling_time
from vaebm.evaluation.classifier import to_float
from vaebm.evaluation.detection import Scores
from vaebm.evaluation.inputs import Files, Inputs, ModelInputs, load, load_models
from vaebm.evaluation.measurements import Measurements
from vaebm.evaluation.normalizer import Normalized, measure_normalizer
from vaebm.evaluation.quality_along_chain import quality_along_chain
from vaebm.measures import modes
from vaebm.measures.frechet import SAMPLES_PER_FEATURE
from vaebm.model import VAEBM, Estimates
from vaebm.plots import image_grid
from vaebm.records import metrics as registry
from vaebm.records.files import recording, write_record
from vaebm.records.results import AlongChain, ChainRecord, DetectionRecord, Measurement, OODRecord, RunRecord
from vaebm.samples import grey_levels
from vaebm.system import provenance
from vaebm.system.errors import UserError
from vaebm.system.plugins import imported

TRAIN_AGAIN = "train the models again, with a smaller learning rate"
"""What to do about a figure that is not finite."""

NOT_NORMALIZED = Normalized({}, {}, {})
"""For a model without an energy or without log p(x)."""

TRAIN = 3000
"""Maximum number of training images for the ELBO: the first ones."""


def unavailable_metrics(ood_sets: list[str], reason: str) -> dict[str, str]:
    """Metrics that a model without log p(x) lacks → `reason`; none for an empty reason."""
    names = [one.pattern for one in (registry.ELBO, registry.ELBO_TRAIN, registry.LOG_LIKELIHOOD)]
    names += [registry.DETECTION[quantity, ""].named(name) for quantity in registry.MEANINGS for name in ood_sets]
    return dict.fromkeys(names, reason) if reason else {}


def sample_metrics(inputs: Inputs, pictures: Path) -> tuple[Measurements, Measurements]:
    """Compute the metrics of the samples' features and modes, and of held-out images in place of samples.

    Draw samples, nearest training images and modes.
    """
    seed, chosen, images, samples = inputs.seed, inputs.settings, inputs.images, inputs.samples
    metrics: Measurements = {}
    of_real: Measurements = {}
    outputs = {}
    for one, reference in inputs.measured:
        outputs[one] = one.extract(samples)
        training = measurements.training_balls(reference, chosen, seed, one.device)
        metrics |= measurements.measure_fidelity(outputs[one], reference, training, chosen, seed, one.kind)
        of_real |= measurements.measure_held_out(reference, training, one.kind)
    extractor, output = inputs.extractor, outputs[inputs.extractor]
    if not inputs.sampling.stretch:  # the distance of images written as the published program writes them
        low, high = samples.flatten(1).aminmax(dim=1)
        stretched = output.features.copy()
        if len(changes := ((low > 0) | (high < 255)).nonzero()[:, 0]):  # stretching keeps the rest as it is
            stretched[changes] = extractor.features(
                samples[changes], lambda part: grey_levels(to_float(part), stretch=True).permute(0, 3, 1, 2)
            )
        distance = Measurement(value=inputs.distance(stretched), samples=len(samples))
        metrics[registry.FD_STRETCHED.named(extractor.kind)] = distance
    if (depth := inputs.mode_extractor.depth(images.shape)) > 1:
        classified = outputs.get(inputs.mode_extractor) or inputs.mode_extractor.extract(samples)
        assert classified.labels is not None
        law = modes.law_of(np.asarray(images.labels[slice(*images.splits["train"])]), depth, classified.logits.shape[2])
        found_modes = modes.modes_of(classified.labels, classified.logits.shape[2])
        metrics |= modes.measure_modes(found_modes, law, chosen.bootstrap, seed)
        plots.modes(modes.histogram(found_modes[:, 0], law), law, seed, pictures / "modes.png")
    image_grid(to_float(samples[: plots.GRID]), pictures / "samples.png")
    train = images.view("train")
    plots.neighbours(samples, output.features, train, inputs.reference.train_features, pictures / "neighbours.png")
    return metrics, of_real


def estimates(inputs: ModelInputs, pixels: Tensor) -> Estimates:
    """Estimates of log p(x) and E(x) of images (N, C, H, W) uint8.

    Raises:
        UserError: one is not finite.
    """
    if inputs.model is None or "wgan" in inputs.trained:
        return Estimates(None, None, None)
    found = inputs.model.estimate(pixels, inputs.seed, inputs.settings.elbo_samples)
    for name, each in found._asdict().items():
        if each is not None and (bad := int((~each.isfinite()).sum())):
            raise UserError(
                f"{inputs.folder}: {name}: expected finite estimates, found {bad} of {len(each)} images with "
                f"{each[~each.isfinite()][0]:g}; {TRAIN_AGAIN}"
            )
    return found


def of_real_images(inputs: ModelInputs) -> tuple[Estimates, Estimates]:
    """Estimates of the held-out images, and of the first training images."""
    held_out, train = inputs.images.split("heldout")[0], inputs.images.split("train", TRAIN)[0]
    return estimates(inputs, held_out), estimates(inputs, train)


def model_metrics(inputs: Inputs, model: VAEBM, pictures: Path) -> tuple[Measurements, Normalized, OODRecord | None]:
    """Compute likelihoods and, unless it is separate, out-of-distribution detection; draw interpolations."""
    of_held_out, of_train = of_real_images(inputs)
    if not inputs.no_likelihood_reason:
        held_out = inputs.images.split("heldout")[0]
        plots.interpolations(model, held_out, inputs.seed, pictures / "interpolations.png")
    metrics = measurements.measure_likelihood(model.nvae, of_held_out, of_train, inputs.settings.elbo_samples)
    normalized = NOT_NORMALIZED
    if model.energy is not None and not inputs.no_likelihood_reason:
        normalized = measure_normalizer(model, inputs.settings, of_held_out, inputs.sampling_seed, inputs.sampling)
    metrics |= normalized.metrics
    if inputs.ood_is_separate:
        return metrics, normalized, None
    found, record = ood_metrics(inputs, of_held_out, of_train, pictures)
    return metrics | found, normalized, record


def ood_metrics(
    inputs: ModelInputs, of_held_out: Estimates, of_train: Estimates, pictures: Path
) -> tuple[Measurements, OODRecord]:
    """Compute out-of-distribution detection: those in the table, and all; draw the sets and the scores."""
    seed, chosen, images = inputs.seed, inputs.settings, inputs.images
    training = detection.scores(of_train)

    def scored(found: Estimates, pixels: Tensor) -> Scores:
        return detection.with_complexity(detection.with_typicality(detection.scores(found), training), pixels)

    inside = scored(of_held_out, images.split("heldout")[0])
    outside: dict[str, Scores] = {}
    shown, sources = [images.split("heldout", 16)[0]], {}
    for name, other in chosen.ood_sets.items() if inside else []:
        others, sources[name] = ood.make_ood_set(name, other, images, inputs.manifests)
        outside[name] = scored(estimates(inputs, others), others)
        shown.append(others[:16])
    figures = detection.measure_ood(inside, outside, chosen.bootstrap, seed)
    if outside:
        image_grid(to_float(torch.cat(shown)), pictures / "sets.png")
        plots.ood(inside, outside, figures, pictures)
    return detection.in_the_table(figures), OODRecord(sets=sources, figures=figures)


def plugin_metrics(inputs: Inputs) -> Measurements:
    """Compute the metrics of plug-ins that the settings name, without a model those of the images alone."""
    metrics: Measurements = {}
    for one in inputs.settings.metrics:
        if inputs.model is None and METRICS[one.name].measured_with in ("model", "clock"):
            continue
        if registry.metric(one.name) is not METRICS[one.name]:
            raise UserError(
                f"evaluation.metrics: {one.name} is a metric of this program; the plug-in needs another name"
            )
        found = imported(METRICS[one.name].measure)(inputs, one)
        if not isinstance(found, Measurement):
            found = Measurement(value=float(found), samples=len(inputs.samples))
        metrics[one.name] = found
    return metrics


def along_chain(inputs: Inputs, model: VAEBM, pictures: Path) -> AlongChain:
    """Compute the quality against the number of steps of the chain, for a model with an energy; draw the chains."""
    sampling = inputs.sampling
    found = quality_along_chain(
        model, inputs.settings.steps, sampling, inputs.sampling_seed, registry.FD.named(inputs.extractor.kind),
        lambda images: inputs.distance(inputs.extractor.features(images)),
    )  # fmt: skip
    plots.chains(model, inputs.samples, inputs.sampling_seed, sampling, pictures)
    plots.steps(found, sampling.chain.steps, pictures / "steps.png")
    return found


def evaluation_record(files: Files, device: torch.device | str) -> RunRecord:
    """Load, measure and draw: the content of metrics.json; the plots go to pictures/ next to it."""
    inputs, pictures = load(files, device), files.metrics.parent / "pictures"
    images, sampling, model = inputs.images, inputs.sampling, inputs.model
    metrics, of_real = sample_metrics(inputs, pictures)
    of_sets, steps, potential, positives, normalized = None, None, None, None, NOT_NORMALIZED
    if model is not None:
        of_model, normalized, of_sets = model_metrics(inputs, model, pictures)
        metrics |= of_model | sampling_time.measure_sampling_time(inputs.shards)
        if model.energy is not None:
            steps, potential, positives = along_chain(inputs, model, pictures), model.potential_kind, model.positives
    metrics |= plugin_metrics(inputs)
    sets = list(inputs.settings.ood_sets)
    unavailable = unavailable_metrics(sets, inputs.no_likelihood_reason) | normalized.without
    if registry.SECONDS_PER_50.pattern not in metrics:
        reason = "its samples have no record of the time they took" if model else inputs.no_likelihood_reason
        unavailable[registry.SECONDS_PER_50.pattern] = reason
    for one, reference in inputs.measured:
        if (name := registry.FD_INFINITE.named(one.kind)) not in metrics:
            found = f"{len(inputs.samples):,} samples of {reference.train_features.shape[1]:,} features"
            unavailable[name] = f"its extrapolation needs {SAMPLES_PER_FEATURE} samples per feature, found {found}"
    separate = inputs.mode_extractor is not inputs.extractor
    experiment, variant, _ = inputs.folder.parts[-3:]
    return RunRecord(
        experiment=experiment,
        variant=variant,
        seed=inputs.seed,
        metrics=metrics,
        steps=steps,
        ood=of_sets,
        normalizers=normalized.records,
        without=unavailable,
        real=of_real,
        extractor=inputs.extractor.describe(images.shape),
        further_extractors=[one.describe(images.shape) for one, _ in inputs.measured[1:]],
        modes_by=inputs.mode_extractor.describe(images.shape) if separate else None,
        chain=ChainRecord(**sampling.chain.chosen, potential=potential, positives=positives, stretch=sampling.stretch),
        data=images.hash,
        users=images.users,
        **provenance.merged([*map(dict, inputs.trained.values()), provenance.commit()]),
        versions=provenance.versions(),
        plugins=inputs.plugins,
        models=inputs.hashes,
        training=inputs.trained,
        foreign=inputs.foreign,
    )


def run(files: Files, device: torch.device | str = "cpu") -> None:
    """Evaluate one run; write files.metrics and pictures/ next to it.

    Raises:
        UserError: a file is missing, damaged, or does not belong to the others, or a figure is not finite.
    """
    with recording(files.metrics, TRAIN_AGAIN):
        write_record(files.metrics, evaluation_record(files, device))


def run_ood(
    settings: Path,
    data: Path,
    nvae: Path,
    energy: Path | None,
    ood_data: list[Path],
    output: Path,
    device: torch.device | str = "cpu",
    prior: Path | None = None,
    pictures: Path | None = None,
) -> None:
    """Measure the out-of-distribution sets of one run; write `output`, ood.json, and `pictures`, by default next to it.

    Raises:
        UserError: as `run`.
    """
    inputs = load_models(settings, data, nvae, energy, output, ood_data, device, prior)
    with recording(output, TRAIN_AGAIN):
        metrics, found = ood_metrics(inputs, *of_real_images(inputs), pictures or output.parent / "pictures")
        if pictures is not None and not pictures.exists():  # a storage has no empty folder
            pictures.mkdir(parents=True)
            (pictures / "none").touch()
        origin = provenance.merged([*map(dict, inputs.trained.values()), provenance.commit()])
        models, images = inputs.hashes, inputs.images.hash
        write_record(output, DetectionRecord(models=models, data=images, ood=found, metrics=metrics, **origin))
