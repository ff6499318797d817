"""A stage's model from elsewhere: a published checkpoint, a model file, a folder, or a hub repository."""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from vaebm.config import STAGES, EBMSettings, NVAESettings, Settings, fingerprint
from vaebm.config.checkpoint import CheckpointSettings, ModelSettings, portable
from vaebm.config.yaml_files import read_settings, validate
from vaebm.data import ImageSet, open_images
from vaebm.energy.published_checkpoint import read_published_energy
from vaebm.model.pretrained import MODEL_CONFIG, find_folder
from vaebm.model.vaebm import VAEBM
from vaebm.nvae.published_checkpoint import read_published_nvae
from vaebm.records.files import TRAINING_RECORD, read_record, write_record
from vaebm.records.training import Layout, ModelOrigin, TrainingRecord
from vaebm.system.allocator import return_freed_memory
from vaebm.system.checkpoint import hash_tensors, load_model, load_plain, save_model
from vaebm.system.errors import UserError
from vaebm.system.files import checksum, model_of
from vaebm.system.provenance import commit, version_of

PUBLISHED_DATASETS = {"celeba_64": "celeba64", "celeba_256": "celebahq256", "lsun_church_64": "lsun_church64"}
"""The published program's name of a data set → ours, where they differ."""


class Found(NamedTuple):
    """A model that was found elsewhere."""

    layout: Layout
    settings: dict[str, Any]
    """Settings that its stage's section has too: network, and of an energy potential, start and positives."""
    shape: tuple[int, ...]
    """(C, H, W) of the images."""
    weights: dict[str, Tensor]
    dataset: str | None = None
    """Name of the data set that it was trained on; None: unknown."""
    facts: dict[str, Any] = {}
    """`epoch` and `filled` of `ModelOrigin`."""
    record: TrainingRecord | None = None
    """Record of the training by this program; None: unknown."""
    nvae: str | None = None
    """Hash of the NVAE that an energy was trained on; None: unknown."""


def run(settings: Path, data: Path, nvae: Path | None, model: Path) -> None:
    """Write `model` and training.json from the checkpoint that the settings, nvae.yaml or ebm.yaml, name.

    `data` is a manifest. Without `nvae`, the NVAE below an energy is not compared here but by the evaluation.

    Raises:
        UserError: there is no such checkpoint, its hash or network is another, or it does not fit the images or NVAE.
    """
    seed, stage = read_settings(settings, STAGES[settings.stem])
    if not isinstance(stage, NVAESettings | EBMSettings) or stage.checkpoint is None:
        raise UserError(f"{settings}: expected a checkpoint, found none")
    images = open_images(data)
    file = locate(stage.checkpoint, seed)
    sha256 = checksum(file, "sha256")
    if stage.checkpoint.sha256 not in (None, sha256):
        raise UserError(f"{file}: expected the SHA-256 {stage.checkpoint.sha256} of {settings}, found {sha256}")
    kind = "nvae" if isinstance(stage, NVAESettings) else "energy"
    found = read(file, kind)
    return_freed_memory()  # of a published optimiser's state
    below = found.nvae if nvae is None else load_model(nvae, "nvae")["hash"]
    check(found, file, stage, settings, images)
    if None not in (found.nvae, below) and found.nvae != below:
        raise UserError(f"{file}: expected an energy of the NVAE {below} ({nvae}), found one of {found.nvae}")
    own = {key: getattr(stage, key) for key in ("potential", "start", "positives") if isinstance(stage, EBMSettings)}
    save_model(model, kind, stage.network.model_dump(), found.weights, shape=list(found.shape), **own)
    source, content = stage.checkpoint.source, stage.model_dump()
    depends_on = {"settings": portable(content), "data": images.hash, "file": sha256, "nvae": below}
    words = "published weights" if found.layout == "published" else f"weights of {source}"
    version = version_of("vaebm")
    record: dict[str, Any] = {
        "stage": settings.stem,
        "steps": 0,
        "seconds": 0.0,
        "fingerprint": fingerprint({"stage": settings.stem, **depends_on}),
        "seed": seed,
        "settings": content,
        "data": images.hash,
        **({"nvae": below} if below else {}),
        "status": f"{words}, sha256 {sha256[:16]}",
        "model": hash_tensors(found.weights),
        "checkpoint": ModelOrigin(source=source, layout=found.layout, sha256=sha256, version=version, **found.facts),
        **commit(),
    }
    write_record(model.with_name("training.json"), TrainingRecord.model_validate(record))
    print(f"{model}: {record['status']}", flush=True)


def locate(checkpoint: CheckpointSettings, seed: int) -> Path:
    """The file of a checkpoint; a hub repository is downloaded once.

    Raises:
        UserError: there is no such folder or repository, or no model in it.
    """
    file = model_of(find_folder(checkpoint.source)) if checkpoint.is_hub else checkpoint.file(seed)
    if not file.is_file():
        raise UserError(f"{file}: expected the model of the checkpoint {checkpoint.source}, found no file")
    return file


def read(file: Path, kind: str) -> Found:
    """Read and check the model of a file, of any layout.

    Raises:
        UserError: the file is damaged, or has no model of this kind.
    """
    if file.with_name(MODEL_CONFIG).is_file():
        return _pretrained(file.parent, kind)
    if file.suffix != ".safetensors":
        there = load_plain(file, "a checkpoint", [argparse.Namespace], mapped=True)
        if not (isinstance(there, dict) and "hash" in there):  # a model of an earlier version has one
            return _published(file, kind)
    content = load_model(file, kind)
    own: dict[str, Any] = {key: content[key] for key in ("potential", "start", "positives") if key in content}
    training = file.with_name("training.json")
    record = read_record(TrainingRecord, training, *TRAINING_RECORD) if training.is_file() else None
    own["network"] = content["network"]
    below = None if record is None else record.nvae
    return Found("model", own, tuple(content["shape"]), content["weights"], record=record, nvae=below)


def _published(file: Path, kind: str) -> Found:
    """A checkpoint of the published program."""
    if kind == "nvae":
        nvae = read_published_nvae(file)
        name = PUBLISHED_DATASETS.get(nvae.dataset, nvae.dataset)
        facts = {"epoch": nvae.epoch, "filled": nvae.filled}
        return Found("published", {"network": nvae.settings.model_dump()}, nvae.shape, nvae.weights, name, facts)
    energy = read_published_energy(file)
    own = {"network": energy.settings.model_dump(), "potential": "density", "start": "prior", "positives": "clean"}
    return Found("published", own, energy.shape, energy.weights)


def _pretrained(folder: Path, kind: str) -> Found:
    """The NVAE or the energy of a folder of `save_pretrained`."""
    model = VAEBM.from_pretrained(folder)
    nvae, config, weights = model.nvae, model.config, model.nvae.state_dict()
    if kind == "nvae":
        return Found("pretrained", {"network": nvae.settings.model_dump()}, nvae.shape, weights)
    if model.energy is None or config.energy is None:
        raise UserError(f"{folder}: expected a model with an energy, found an NVAE alone")
    own: dict[str, Any] = {"potential": config.potential, "start": config.start, "positives": config.positives}
    own["network"], below = config.energy.model_dump(), hash_tensors(weights)
    return Found("pretrained", own, nvae.shape, model.energy.state_dict(), nvae=below)


def check(found: Found, file: Path, stage: ModelSettings, settings: Path, images: ImageSet) -> None:
    """Raise `UserError` where a model does not fit the section of its stage, or the images."""
    theirs = validate(type(stage), {**dict(stage), **found.settings, "checkpoint": None}, str(file))
    pairs: dict[str, tuple[Any, Any]] = {}
    for key in found.settings:
        own, other = getattr(stage, key), getattr(theirs, key)
        if isinstance(own, Settings):
            pairs |= {f"{key}.{name}": (getattr(other, name, None), value) for name, value in own}
        else:
            pairs[key] = (other, own)
    for key, (expected, value) in pairs.items():
        if expected != value:
            advice = "; `vaebm convert` prints the whole section" if found.layout == "published" else ""
            raise UserError(
                f"{settings}: {settings.stem}.{key}: expected {expected}, as {file} has, found {value}{advice}"
            )
    if found.shape != images.shape:
        raise UserError(f"{file}: expected a model of images {images.shape}, as the data, found one of {found.shape}")
    other = found.record is not None and found.record.data not in (None, images.hash)
    if other or (found.dataset is not None and found.dataset != images.name and not images.users):
        theirs_name = found.dataset or f"the manifest {found.record and found.record.data}"
        raise UserError(
            f"{file}: expected a model of the data set {images.name} ({images.hash[:12]}), found one of {theirs_name}"
        )
