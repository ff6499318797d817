"""The experiment: one section per stage, and how the sections have to fit."""

import math
from functools import reduce
from itertools import product
from typing import Annotated, Any, NamedTuple, Self

from pydantic import Field, SerializeAsAny, model_validator

from vaebm.config.base import Name, Settings, fingerprint, later, merge, nested
from vaebm.config.changes import with_changes
from vaebm.config.checkpoint import CheckpointSettings, ModelSettings, portable
from vaebm.config.data import DataSettings
from vaebm.config.datasets import DATASETS
from vaebm.config.ebm import EBMSettings
from vaebm.config.evaluation import ClassifierSettings, EvaluationSettings, ExtractorSettings, SamplesSettings
from vaebm.config.nvae import NVAESettings
from vaebm.config.prior import PriorSettings
from vaebm.config.resources import Resources
from vaebm.config.wgan import WGANSettings
from vaebm.system.errors import brief

BASELINE = "nvae"
"""Variant of the NVAE alone: the same noise as the other variants, no chain."""

PRIOR = "prior"
"""Folder of the energies on noise."""

TAKEN = (BASELINE, PRIOR, "classifier", "reference", "mirrored")
"""Folders and files in an experiment's results, whose names no variant can have, also not in capitals (macOS)."""


class Stage(NamedTuple):
    """Training stage of a model."""

    name: str
    """`nvae`, `prior`, `ebm` or `wgan`: name of command, settings file and section. `images`: none."""
    settings: Settings | None
    """None: the experiment has no such section."""
    prior: bool = False
    """Whether the energy on noise is part of the model."""


CHANGED_BY_VARIANTS: dict[str, type[Settings]] = {"ebm": EBMSettings, "samples": SamplesSettings}
"""Section of a variant that overrides some settings → model of the whole section."""


class Variant(Settings):
    """Model other than the NVAE: the experiment's sections with changes."""

    ebm: dict[str, Any] = {}
    """Changed settings of the section `ebm`."""
    samples: dict[str, Any] = {}
    """Changed settings of the section `samples`."""
    wgan: WGANSettings | None = None
    """Train the NVAE's decoder further as the generator of a GAN, without energy and chain."""
    prior: bool = later(False)
    """Add the energy on noise of the section `prior`."""
    energy: bool = later(True)
    """false: the energy on noise alone, without E(x) and its chain."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = later({})
    """Settings of `ebm` or `samples`, as samples.chain.steps, each with a list of values. Each combination is a
    variant, named by its index. Equal energies are trained once."""
    metric: str | None = later(None)
    """Metric that the report plots over the grid; default: the Fréchet distance."""
    images: Annotated[str, Field(min_length=1)] | None = later(None)
    """Images that another program drew, measured without a model: a folder of PNG files, or a file .npy or .npz."""

    @model_validator(mode="after")
    def _images_are_alone(self) -> Self:
        others = [key for key in self.model_dump(exclude_defaults=True) if key != "images"]
        if self.images is not None and others:
            raise ValueError(f"images: expected no other key with images of another program, found {', '.join(others)}")
        return self


class Experiment(Settings):
    """Experiment file: one section per stage; the pipeline requires all of them (`missing`)."""

    data: SerializeAsAny[DataSettings]
    nvae: NVAESettings = NVAESettings()
    prior: PriorSettings | None = later(None)
    ebm: EBMSettings | None = None
    samples: SamplesSettings | None = None
    evaluation: EvaluationSettings | None = None
    variants: dict[Name, Variant] = {"vaebm": Variant()}
    """Name of each model other than the NVAE → its changes."""
    resources: Resources = Resources()

    @property
    def every_variant(self) -> dict[str, Variant]:
        """Name → variant, with a variant for each combination of a grid; its `grid` has one value for each setting."""
        found: dict[str, Variant] = {}
        for name, variant in self.variants.items():
            points = [dict(zip(variant.grid, values, strict=True)) for values in product(*variant.grid.values())]
            for index, point in enumerate(points):
                sections = {"ebm": variant.ebm, "samples": variant.samples}
                changes = reduce(merge, (nested(key, value) for key, value in point.items()), sections)
                grid = {key: [value] for key, value in point.items()}
                found[f"{name}_{index}" if point else name] = variant.model_copy(update={**changes, "grid": grid})
        return found

    @property
    def models(self) -> list[str]:
        """Names of all models: the NVAE, and the variants that have settings or images of another program."""
        return [BASELINE, *(name for name in self.every_variant if self.stage_of(name)[:2] != ("ebm", None))]

    def seeds_of(self, model: str, seeds: list[int]) -> list[int]:
        """Those of `seeds` that a model is measured with: the first for images of another program, which have none."""
        return seeds[:1] if self.stage_of(model).name == "images" else seeds

    def same_energy(self, model: str) -> str | None:
        """Variant whose energy a combination of a grid takes, because the settings are equal; None: it has its own.

        A variant without E(x) takes the energy on noise.
        """
        variants = self.every_variant
        if self.stage_of(model).name == "prior":
            return PRIOR
        if model == BASELINE or not variants[model].grid:
            return None
        order = sorted(variants, key=lambda name: bool(variants[name].grid))
        before, own = order[: order.index(model)], self.stage_of(model)
        return next((name for name in before if self.stage_of(name) == own), None)

    def stage_of(self, model: str) -> Stage:
        """Stage that trains a model."""
        if model == BASELINE:
            return Stage("nvae", self.nvae)
        variant = self.every_variant[model]
        if variant.images is not None:
            return Stage("images", None)
        if variant.wgan is not None:
            return Stage("wgan", variant.wgan)
        if not variant.energy:
            return Stage("prior", self.prior, True)
        ebm = None if self.ebm is None else with_changes(self.ebm, variant.ebm, f"variants.{model}.ebm")
        return Stage("ebm", ebm, variant.prior)

    def checkpoint_of(self, model: str) -> CheckpointSettings | None:
        """Checkpoint from which a model is taken; None: it is trained."""
        settings = self.stage_of(model).settings
        return settings.checkpoint if isinstance(settings, ModelSettings) else None

    def samples_of(self, variant: str) -> SamplesSettings | None:
        """Settings of stage `samples` of a model; without an energy there is no chain."""
        if self.samples is None or self.stage_of(variant).name == "images":
            return None
        if self.stage_of(variant).name != "ebm":
            return self.samples.model_copy(update={"chain": self.samples.chain.off})
        return with_changes(self.samples, self.every_variant[variant].samples, f"variants.{variant}.samples")

    @model_validator(mode="after")
    def _variants_fit(self) -> Self:
        variants = self.every_variant
        if len(variants) < sum(math.prod(map(len, variant.grid.values())) for variant in self.variants.values()):
            raise ValueError("variants: a grid's combination has the name of another variant; choose another")
        for name, variant in variants.items():
            for key in variant.grid:
                if not key.startswith(("ebm.", "samples.")):
                    expected = "expected settings of ebm or samples, as samples.chain.steps"
                    raise ValueError(f"variants.{name.rpartition('_')[0]}.grid: {expected}, found {brief(repr(key))}")
            if name.lower() in TAKEN:
                raise ValueError(f"variants.{name}: this name belongs to something else in the results; choose another")
            stage = self.stage_of(name)
            self.samples_of(name)
            if problem := self._prior_problem(variant, stage):
                raise ValueError(f"variants.{name}.{problem}")
            if stage.name == "wgan" and (variant.ebm or variant.samples):
                raise ValueError(
                    f"variants.{name}: a GAN has no energy and no chain: "
                    "expected wgan alone, found ebm or samples beside it"
                )
        return self

    def _prior_problem(self, variant: Variant, stage: Stage) -> str | None:
        """One line on a variant that does not fit the energy on noise; None: it fits."""
        if not variant.prior:
            return None if variant.energy else "energy: expected true, or prior: true with it, found false"
        if self.prior is None:
            return "prior: expected a section prior in the experiment, found none"
        if variant.wgan is not None or getattr(stage.settings, "potential", None) == "pixels":
            return "prior: expected chains in noise, found a GAN or potential pixels"
        if variant.energy and getattr(stage.settings, "checkpoint", None) is not None:
            return "prior: expected an energy that is trained on it, found ebm.checkpoint"
        if not variant.energy and (variant.ebm or variant.samples):
            return "energy: expected no ebm and no samples without E(x) and its chain, found some"
        return None

    @model_validator(mode="after")
    def _fits_the_images(self) -> Self:
        """Find mistakes that would otherwise stop a run in the middle."""
        facts, network, evaluation = self.data.facts, self.nvae.network, self.evaluation
        size = f"{facts.side}×{facts.side} images"
        if facts.side % 2**network.halvings:
            asked = f"{network.halvings} times (preprocess_blocks and scales of groups)"
            raise ValueError(f"nvae.network: {size} cannot be halved {asked}")
        if 2 * network.crop >= facts.side:
            raise ValueError(
                f"nvae.network.crop: expected less than half of the images' {facts.side} rows, found {network.crop}"
            )
        if network.decoder == "logistic_mixture" and facts.channels != 3:
            found = f"{self.data.dataset} has {facts.channels} channel(s)"
            raise ValueError(f"nvae.network.decoder: logistic_mixture is made for 3 colours, {found}")
        if self._trained and network.decoder != "normal":
            raise ValueError(
                f"nvae.network.decoder: energies and GANs need the decoder normal, found {network.decoder}"
            )
        for where, section in self._trained.items():
            halvings = len(set(getattr(section.network, "down", ())))  # a plug-in's network may have none
            if facts.side < 2**halvings:
                raise ValueError(f"{where}.network.down: {size} cannot be halved {halvings} times")
        if evaluation is not None:
            if evaluation.classifier is not None and facts.side < 4:
                raise ValueError(f"evaluation.classifier: expected images of at least 4×4, found {size}; leave it out")
            if problem := evaluation.extractor_problem(facts):
                raise ValueError(f"evaluation.{problem}")
            if evaluation.classifier is not None and facts.stacks:
                images, batch = DATASETS[facts.stacks].train or 0, evaluation.classifier.batch
                if batch > images:
                    expected = f"expected at most the {images} training images of {facts.stacks}"
                    raise ValueError(f"evaluation.classifier.batch: {expected}, found {batch}")
        if facts.train is not None and (problem := self.image_count_problem(facts.train, facts.heldout or 0)):
            raise ValueError(problem)
        if evaluation is not None:
            for name, data in evaluation.ood_sets.items():
                if problem := self._ood_problem(name, data):
                    raise ValueError(f"evaluation.ood: {name}: {problem}")
            required = _image_counts(evaluation) | {"inception_splits": evaluation.inception_splits}
            required["steps.images"] = evaluation.steps.images
            for samples, (key, count) in product(filter(None, map(self.samples_of, self.models)), required.items()):
                if count > samples.count:
                    raise ValueError(f"evaluation.{key}: expected at most the {samples.count} samples, found {count}")
        return self

    def _ood_problem(self, name: str, data: DataSettings | None) -> str | None:
        """One line on an OOD set that does not fit the held-out images; None: it fits."""
        own = self.data.facts
        if data is None:
            if name == "photographs" and self.data.dataset != "digits":
                return f"it is made for digits alone, found {self.data.dataset}; leave it out"
            return None
        if data.prepared == self.data.prepared:
            return "expected another set than the experiment's own"
        if data.facts.channels != own.channels:
            channels = f"{own.channels} channel(s), as {self.data.prepared} has, found {data.facts.channels}"
            return (
                f"expected images of {channels}: colour alone would tell them apart; "
                "a folder is converted to what its section says"
            )
        if data.facts.side < own.side:
            found = f"found {data.facts.side}×{data.facts.side}"
            return f"expected at least {own.side}×{own.side} pixels, as {self.data.prepared} has, {found}"
        return None

    @property
    def _trained(self) -> dict[str, EBMSettings | WGANSettings]:
        """Key of each section that trains an energy or a GAN → the section."""
        stages = {name: self.stage_of(name) for name in self.every_variant}
        every = {"ebm": self.ebm, **{f"variants.{name}.{one.name}": one.settings for name, one in stages.items()}}
        return {where: one for where, one in every.items() if isinstance(one, EBMSettings | WGANSettings)}

    def image_count_problem(self, train: int, heldout: int) -> str | None:
        """One line on a setting that requires more than `train` training or `heldout` held-out images, or None."""
        required = {}
        if self.prior is not None:
            required["prior.batch"] = math.ceil(self.prior.batch / (1 - self.prior.validation))
        for where, section in {"nvae": self.nvae, **self._trained}.items():
            if isinstance(section, WGANSettings):
                required[f"{where}.batch"] = section.batch
            elif section.checkpoint is None:
                required[f"{where}.training.batch"] = section.training.batch
        if self.evaluation is not None:
            required |= {f"evaluation.{key}": found for key, found in _image_counts(self.evaluation).items()}
            if self.evaluation.classifier is not None and not self.data.facts.stacks:
                required["evaluation.classifier.batch"] = self.evaluation.classifier.batch
        for where, found in required.items():
            if found > train:
                return f"{where}: expected at most the {train} training images, found {found}"
        if self.evaluation is not None and heldout < 2:
            return f"evaluation: expected at least 2 held-out images, found {heldout}; data.heldout says how many are"
        return None

    @property
    def classifier_data(self) -> str:
        """Data set on which the classifier is trained: the experiment's own, or that of the channels of stacks."""
        return self.data.facts.stacks or self.data.prepared

    @property
    def datasets(self) -> list[DataSettings]:
        """All data sets to prepare: the experiment's own, that of the channels of stacks, and the OOD sets."""
        stacks = self.data.facts.stacks
        return [self.data, *([DataSettings(dataset=stacks, path=self.data.path)] if stacks else []), *self.ood_data]

    @property
    def ood_data(self) -> list[DataSettings]:
        """OOD sets that have to be prepared."""
        sets = {} if self.evaluation is None else self.evaluation.ood_sets
        return [data for data in sets.values() if data is not None]

    @property
    def missing(self) -> list[str]:
        """Sections that the pipeline requires and this experiment lacks; single stages run without them."""
        return [f"a section {name}" for name in ("ebm", "samples", "evaluation") if getattr(self, name) is None]

    def hash(self) -> str:
        """Hash of all settings on which metrics depend: without `resources` and local paths."""
        without_paths = self.model_copy(update={"evaluation": self.evaluation and self.evaluation.without_paths})
        paths: Any = {"resources": True, "data": {"path"}, "variants": {"__all__": {"images"}}}
        return fingerprint(portable(without_paths.model_dump(exclude=paths)))


def _image_counts(settings: EvaluationSettings) -> dict[str, int]:
    """Settings of the evaluation that require as many samples, and as many training images."""
    return {"kid_subset_size": settings.kid_subset_size, "precision_recall.images": settings.precision_recall.images}


STAGES: dict[str, type[Settings]] = {
    "data": DataSettings,
    "nvae": NVAESettings,
    "prior": PriorSettings,
    "ebm": EBMSettings,
    "wgan": WGANSettings,
    "samples": SamplesSettings,
    "evaluation": EvaluationSettings,
    "classifier": ClassifierSettings,
    "extractor": ExtractorSettings,
}
