"""Inputs of the stage `evaluation`: files, samples, models and training records, read and checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vaebm.config import DATASETS, STAGES, DataSettings, EvaluationSettings, SamplesSettings, Settings
from vaebm.config.base import plugins_in
from vaebm.config.checkpoint import portable
from vaebm.config.yaml_files import read_settings, validate
from vaebm.data import ImageSet, open_images
from vaebm.data.foreign import read_foreign
from vaebm.evaluation.extractors import Extractor, open_extractor
from vaebm.evaluation.reference import Reference, read_reference
from vaebm.evaluation.sampling_time import SHARD_RECORD
from vaebm.measures.bootstrap import Features
from vaebm.measures.frechet import Statistics, frechet_distance
from vaebm.model import NO_CHAIN, VAEBM
from vaebm.records.files import TRAINING_RECORD, read_record
from vaebm.records.results import ForeignImages, ShardRecord
from vaebm.records.training import TrainingRecord
from vaebm.samples import origin_of
from vaebm.system.checkpoint import load_model
from vaebm.system.errors import UserError
from vaebm.system.files import checksum, warn_unverified


def run_folder(metrics: Path) -> Path:
    """The folder of a run, results/<experiment>/<variant>/seed<k>, from its evaluation/metrics.json.

    Raises:
        UserError: it is another path.
    """
    folder = metrics.absolute().parent.parent
    if not folder.name.startswith("seed") or metrics.parent.name != "evaluation":
        raise UserError(
            f"{metrics}: expected a path results/EXPERIMENT/VARIANT/seedK/evaluation/metrics.json, found another"
        )
    return folder


def read_samples(shards: list[Path], shape: tuple[int, int, int] | None, count: int) -> Tensor:
    """Read the `count` samples (N, C, H, W) uint8 in the order of the shards, .npy files (n, H, W, C) uint8.

    Their `shape` is (C, H, W); None: that of the first shard.

    Raises:
        UserError: a missing or damaged file, images of another form, or another number of them.
    """
    sizes = (shape[1], shape[2], shape[0]) if shape else None
    parts = []
    for path in shards:
        expected = f"{path}: expected samples (n, {', '.join(map(str, sizes or 'HWC'))}) uint8, found"
        try:
            part = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise UserError(f"{expected} no file; `vaebm samples` makes it") from None
        except (ValueError, EOFError, OSError):
            raise UserError(f"{expected} a file that is not a whole .npy array; remove it and sample again") from None
        sizes = sizes or part.shape[1:]
        if part.dtype != np.uint8 or part.ndim != 4 or part.shape[1:] != sizes:
            raise UserError(f"{expected} {part.shape} {part.dtype}; remove it and sample again")
        parts.append(part)
    if (found := sum(map(len, parts))) != count:
        raise UserError(
            f"{shards[0].parent}: expected {count} samples, as samples.yaml says, found {found} in {len(shards)} shards"
        )
    channels_first = [part.transpose(0, 3, 1, 2) for part in parts]
    samples = np.empty((count, *channels_first[0].shape[1:]), dtype=np.uint8)  # the only copy: shards are memory-mapped
    np.concatenate(channels_first, out=samples)
    return torch.from_numpy(samples)


def check_shards(shards: list[Path], seed: int, stage: SamplesSettings, models: dict[str, str]) -> None:
    """Compare the samples with the hashes and the origin in their records; without a record there is a warning.

    The origin is made from samples.yaml (`seed`, `stage`) and `models`, network → hash of its weights.

    Raises:
        UserError: other bytes, or samples of other models, settings or indices.
    """
    unverified = []
    for number, path in enumerate(shards):
        file = path.with_suffix(".json")
        record = read_record(ShardRecord, file, *SHARD_RECORD) if file.is_file() else None
        if record is None or record.sha256 is None:
            unverified.append(path)
            continue
        known = {"bytes": checksum(path), **record.origin}
        for what, expected in {"bytes": record.sha256, **origin_of(seed, stage, stage.shard(number), models)}.items():
            if (found := known.get(what, "none")) != expected:
                difference = f"expected samples of {what} {expected[:16]}, found {found[:16]}"
                raise UserError(f"{path}: {difference}; remove it and sample again")
    if unverified:
        warn_unverified(unverified[0], f"so are {len(unverified)} of {len(shards)} shards; sample again to have one")


def _training(model: Path, weights: str, data: str) -> tuple[TrainingRecord, Settings]:
    """Training record of `model`, without settings and data, and settings; it has to be of these weights and data."""
    path = model.with_name("training.json")
    record = read_record(TrainingRecord, path, *TRAINING_RECORD)
    if record.stage not in STAGES:
        raise UserError(f"{path}: stage: expected one of {', '.join(STAGES)}, found {record.stage}")
    settings, kind = model.with_name(f"{record.stage}.yaml"), STAGES[record.stage]
    trained = validate(kind, record.settings, f"{path}: settings")
    if portable(trained.model_dump()) != portable(read_settings(settings, kind)[1].model_dump()):
        raise UserError(
            f"{model}: expected a model trained with {settings}, found one trained with other settings; "
            "remove it and run again"
        )
    for what, found, expected in (("weights", weights, record.model), ("data", data, record.data)):
        if expected not in (None, found):
            raise UserError(f"{model}: expected {what} {expected[:12]} of {path.name}, found {found[:12]}; train again")
    shown = record.model_dump(exclude={"settings", "data", "system"}, exclude_unset=True)
    return TrainingRecord.model_validate(shown), trained


class Files(NamedTuple):
    """The paths that one evaluation reads and writes."""

    settings: Path
    """evaluation.yaml."""
    data: Path
    """Manifest of the images."""
    nvae: Path | None
    """Model file of the NVAE, or of the NVAE whose decoder is a GAN's generator; None: images of another program."""
    energy: Path | None
    """Model file of the energy; None: the NVAE alone."""
    extractor: Path
    """Settings file of the extractor, in the folder of those of further ones."""
    classifier: Path | None
    """Model file of the classifier, if it is the extractor or classifies the channels of stacks."""
    reference: Path
    """Output of `reference.write_reference`, in the folder of those of further extractors."""
    shards: list[Path]
    """The samples, in the folder of samples.yaml; or a folder or a file with images of another program."""
    metrics: Path
    """results/<experiment>/<variant>/seed<k>/evaluation/metrics.json, the output."""
    ood_data: Sequence[Path] = ()
    """Manifests data/<name>/manifest.json of the out-of-distribution sets."""
    prior: Path | None = None
    """Model file of the energy on noise; None: none."""


@dataclass(frozen=True)
class ModelInputs:
    """What the measurements of models read."""

    folder: Path
    """`results/<experiment>/<variant>/seed<k>`."""
    seed: int
    """Seed of the run."""
    settings: EvaluationSettings
    """The section `evaluation`."""
    images: ImageSet
    """The prepared data set."""
    manifests: dict[str, Path]
    """Name of a prepared out-of-distribution set → its manifest."""
    model: VAEBM | None
    """None: another program drew the samples."""
    trained: dict[str, TrainingRecord]
    """Stage → its training record."""
    hashes: dict[str, str]
    """Network → hash of its weights."""
    plugins: list[str]
    """Name, version and hash of the source of each plug-in."""

    @property
    def ood_is_separate(self) -> bool:
        """Whether `vaebm ood` measures the out-of-distribution sets, because some of them have to be prepared."""
        return not self.manifests and any(self.settings.ood_sets.values())

    @property
    def no_likelihood_reason(self) -> str:
        """Why log p(x) cannot be estimated; empty if it can."""
        if self.model is None:
            return "another program drew these images, and its model is not here"
        if "wgan" in self.trained:
            return "a generator has no posterior, and no estimate of log p(x)"
        return self.model.no_likelihood_reason


@dataclass(frozen=True)
class Inputs(ModelInputs):
    """Everything that the evaluation of one run reads."""

    sampling_seed: int
    """Seed of the samples."""
    sampling: SamplesSettings
    """The section `samples`."""
    shards: list[Path]
    """Files of the samples."""
    foreign: ForeignImages | None
    """Origin of the samples if another program drew them."""
    samples: Tensor
    """(N, C, H, W) uint8."""
    extractor: Extractor
    """The extractor of the settings."""
    mode_extractor: Extractor
    """Classifies the channels of stacks; `extractor` unless the settings train a separate classifier."""
    reference: Reference
    """Its features and statistics of the real images."""
    measured: list[tuple[Extractor, Reference]]
    """All extractors and their references, that of the settings first."""

    def distance(self, features: Features) -> float:
        """Fréchet distance of features (N, D) to the training images."""
        return frechet_distance(Statistics.of(features), self.reference.train)


def _foreign_samples(
    files: Files, settings: EvaluationSettings, shape: tuple[int, int, int]
) -> tuple[Tensor, ForeignImages]:
    """Images of another program, enough for the metrics."""
    if len(files.shards) > 1:
        raise UserError(f"{files.shards[1]}: expected one folder or file of images, or the model (--nvae), found more")
    samples, origin = read_foreign(files.shards[0], shape)
    counts = {"kid_subset_size": settings.kid_subset_size, "inception_splits": settings.inception_splits}
    for key, count in (counts | {"precision_recall.images": settings.precision_recall.images}).items():
        if count > len(samples):
            raise UserError(
                f"evaluation.{key}: expected at most the {len(samples)} images of {origin.path}, found {count}"
            )
    return samples, origin


def load_models(
    settings: Path,
    data: Path,
    nvae: Path | None,
    energy: Path | None,
    output: Path,
    ood_data: Sequence[Path],
    device: torch.device | str,
    prior: Path | None = None,
) -> ModelInputs:
    """Read and check the models of a run, its data and its settings; `Files` explains the arguments.

    Raises:
        UserError: a file is missing, damaged, or does not belong to the others.
    """
    folder, own = run_folder(output), energy or prior or nvae
    if nvae is None and own is not None:
        raise UserError(f"--{'energy' if energy else 'prior'}: expected the NVAE below it too (--nvae), found none")
    if own is not None and own.absolute().parent != folder:
        raise UserError(
            f"{output}: expected the model of this run, "
            f"{folder.name}/model.safetensors of the variant {folder.parent.name}, found {own}"
        )
    seed, chosen = read_settings(settings, EvaluationSettings)
    images = open_images(data)
    files = {"nvae": nvae, "energy": energy, "prior": prior}
    models = {kind: path for kind, path in files.items() if path is not None}
    hashes = {kind: load_model(path, kind)["hash"] for kind, path in models.items()}
    model = None if nvae is None else VAEBM.load(nvae, energy, device, prior)
    trained = [_training(path, hashes[kind], images.hash) for kind, path in models.items()]
    for path, (record, _) in list(zip(models.values(), trained, strict=True))[1:]:
        if record.nvae not in (None, hashes["nvae"]):
            expected = f"an energy of the NVAE {hashes['nvae']} ({nvae})"
            raise UserError(f"{path}: expected {expected}, found one of {record.nvae}")
    sets = [DataSettings.model_validate(images.name)] if images.name in DATASETS else []
    used = [chosen, *sets, *filter(None, chosen.ood_sets.values()), *(settings for _, settings in trained)]
    plugins = plugins_in(used).union(*(record.plugins for record, _ in trained))
    manifests = {path.parent.name: path for path in ood_data}
    records = {record.stage: record for record, _ in trained}
    return ModelInputs(folder, seed, chosen, images, manifests, model, records, hashes, sorted(plugins))


def load(files: Files, device: torch.device | str) -> Inputs:
    """Read and check all inputs.

    Raises:
        UserError: a file is missing, damaged, or does not belong to the others.
    """
    arguments = (files.settings, files.data, files.nvae, files.energy, files.metrics, files.ood_data)
    models = load_models(*arguments, device, files.prior)
    chosen, images, classifier = models.settings, models.images, files.classifier
    paths = {chosen.extractor.name: (files.extractor, files.reference)}
    for one in chosen.further_extractors:
        paths[one.name] = files.extractor.with_name(f"{one.name}.yaml"), files.reference.with_name(f"{one.name}.npz")
    measured: list[tuple[Extractor, Reference]] = []
    for name, (extractor, reference) in paths.items():
        found = open_extractor(extractor, classifier, device)
        if found.kind != name:
            raise UserError(f"{extractor}: expected the extractor {name}, as {files.settings} says, found {found.kind}")
        statistics = read_reference(reference, images.hash, found.weights)
        if not len(statistics.heldout_features):  # an earlier version wrote it
            statistics = statistics._replace(heldout_features=found.features(images.split("heldout")[0]))
        measured.append((found, statistics))
    opened, statistics = measured[0]
    foreign: ForeignImages | None = None
    if models.model is None:
        samples, foreign = _foreign_samples(files, chosen, images.shape)
        sampling_seed, sampling = models.seed, SamplesSettings(count=len(samples), chain=NO_CHAIN)
    else:
        sampling_seed, sampling = read_settings(files.shards[0].with_name("samples.yaml"), SamplesSettings)
        samples = read_samples(files.shards, images.shape, sampling.count)
        check_shards(files.shards, sampling_seed, sampling, models.hashes)
        models.model.configure_sampling(sampling)
    mode_extractor = opened
    if chosen.classifier is not None and opened.kind != "classifier":
        if classifier is None:
            raise UserError(
                f"{files.settings}: expected the model of the classifier beside it (--classifier), found none"
            )
        mode_extractor = Extractor.of("classifier", classifier, device)
    hashes = models.hashes | {one.kind: one.weights for one in (*(one for one, _ in measured), mode_extractor)}
    plugins = sorted({*models.plugins, *plugins_in(sampling)})
    return Inputs(
        **{**vars(models), "hashes": hashes, "plugins": plugins}, sampling_seed=sampling_seed, sampling=sampling,
        shards=files.shards, foreign=foreign, samples=samples, extractor=opened, mode_extractor=mode_extractor,
        reference=statistics, measured=measured,
    )  # fmt: skip
