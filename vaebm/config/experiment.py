"""The experiment: one section per stage, and what its parts have to fit."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from vaebm.config.base import S, Settings, fingerprint
from vaebm.config.data import DATASETS, DataSettings
from vaebm.config.ebm import EBMSettings
from vaebm.config.evaluation import ClassifierSettings, EvaluationSettings, ExtractorSettings, SamplesSettings
from vaebm.config.nvae import NVAESettings
from vaebm.config.wgan import WGANSettings

BASELINE = "nvae"
"""The variant that is the NVAE alone: the same noise as the others, no chain."""

TAKEN = (BASELINE, "classifier", "reference")
"""Names of folders in an experiment's results, which no variant can have."""


class CPUResources(Settings):
    """What one job of a stage may use; outside the settings files, so that changing it reruns nothing."""

    threads: PositiveInt = 1
    """CPU threads."""
    mem_mb: PositiveInt = 2000
    """Memory, in MB."""
    runtime: PositiveInt = 60
    """Time, in minutes; trainings stop themselves before it and are resumed."""


class GPUResources(CPUResources):
    """The same, for stages that can use a GPU."""

    gpu: NonNegativeInt = 0
    """GPUs; 0: the CPU."""


class Resources(Settings):
    """Resources of the jobs of each stage."""

    data: CPUResources = CPUResources()
    classifier: CPUResources = CPUResources()
    nvae: GPUResources = GPUResources()
    ebm: GPUResources = GPUResources()
    samples: GPUResources = GPUResources()
    evaluation: GPUResources = GPUResources()
    benchmarks: CPUResources = CPUResources()


class Stage(NamedTuple):
    """A training of an experiment."""

    name: str
    """`nvae`, `ebm` or `wgan`: its command, its settings file and the section in it."""
    settings: Settings | None
    """None: the experiment has no section for it."""


class Variant(Settings):
    """A model beside the NVAE: the experiment's sections, and what it has differently."""

    ebm: dict[str, Any] = {}
    """Settings of the section `ebm` with other values, under their names."""
    samples: dict[str, Any] = {}
    """Settings of the section `samples` with other values, under their names."""
    wgan: WGANSettings | None = None
    """Instead of an energy: the NVAE's decoder is trained further as the generator of a GAN, and there is no chain."""


class Experiment(Settings):
    """An experiment file: one section per stage. The pipeline needs all of them (`missing`)."""

    data: DataSettings
    nvae: NVAESettings
    ebm: EBMSettings | None = None
    samples: SamplesSettings | None = None
    evaluation: EvaluationSettings | None = None
    variants: dict[Annotated[str, Field(pattern=r"^\w+$")], Variant] = {"vaebm": Variant()}
    """Name of each model beside the NVAE → what it has differently."""
    resources: Resources = Resources()

    @property
    def models(self) -> list[str]:
        """Names of all models: the NVAE alone, and the variants that there are settings for."""
        return [BASELINE, *(name for name in self.variants if self.stage_of(name).settings is not None)]

    def stage_of(self, model: str) -> Stage:
        """The training that makes a model."""
        if model == BASELINE:
            return Stage("nvae", self.nvae)
        variant = self.variants[model]
        if variant.wgan is not None:
            return Stage("wgan", variant.wgan)
        return Stage("ebm", None if self.ebm is None else changed(self.ebm, variant.ebm, f"variants.{model}.ebm"))

    def samples_of(self, variant: str) -> SamplesSettings | None:
        """Stage `samples` of a model; without the chain where there is no energy."""
        if self.samples is None:
            return None
        if self.stage_of(variant).name != "ebm":
            return changed(self.samples, {"chain": {"steps": 0, "step_size": 1.0}}, variant)
        return changed(self.samples, self.variants[variant].samples, f"variants.{variant}.samples")

    @model_validator(mode="after")
    def _variants_fit(self) -> Experiment:
        for name in self.variants:
            if name in TAKEN:
                raise ValueError(f"variants.{name}: this name belongs to something else in the results; choose another")
            stage = self.stage_of(name)
            self.samples_of(name)
            if stage.name == "wgan" and (self.variants[name].ebm or self.variants[name].samples):
                raise ValueError(
                    f"variants.{name}: a GAN has no energy and no chain: expected wgan alone, found ebm or samples beside it"
                )
        return self

    @model_validator(mode="after")
    def _fits_the_images(self) -> Experiment:
        """What would otherwise end a run in the middle."""
        facts, network = self.data.facts, self.nvae.network
        if facts.side % 2**network.halvings:
            raise ValueError(
                f"nvae.network: {facts.side}×{facts.side} images cannot be halved {network.halvings} times (preprocess_blocks and scales of groups)"
            )
        if 2 * network.crop >= facts.side:
            raise ValueError(
                f"nvae.network.crop: expected less than half of the images' {facts.side} rows, found {network.crop}"
            )
        if network.decoder == "logistic_mixture" and facts.channels != 3:
            raise ValueError(
                f"nvae.network.decoder: logistic_mixture is made for 3 colours, {self.data.dataset} has {facts.channels} channel(s)"
            )
        if (self.ebm is not None or len(self.models) > 1) and network.decoder != "normal":
            raise ValueError(
                f"nvae.network.decoder: energies and GANs need the decoder normal, found {network.decoder}"
            )
        for where, section in self._trained.items():
            halvings = len(set(section.network.down))
            if facts.side < 2**halvings:
                raise ValueError(
                    f"{where}.network.down: {facts.side}×{facts.side} images cannot be halved {halvings} times"
                )
        if self.evaluation is not None and (
            problem := self.evaluation.unfit((facts.channels, facts.side, facts.side), bool(facts.stacks))
        ):
            raise ValueError(f"evaluation.{problem}")
        if self.evaluation is not None and self.evaluation.classifier is not None and facts.stacks:
            single, batch = DATASETS[self.judged].train or 0, self.evaluation.classifier.batch
            if batch > single:
                raise ValueError(
                    f"evaluation.classifier.batch: expected at most the {single} training images of {self.judged}, found {batch}"
                )
        if (
            facts.train is not None
            and facts.heldout is not None
            and (problem := self.too_few(facts.train, facts.heldout))
        ):
            raise ValueError(problem)
        for name, data in ({} if self.evaluation is None else self.evaluation.ood_sets).items():
            if problem := self._unfit_for_ood(name, data):
                raise ValueError(f"evaluation.ood: {name}: {problem}")
        for samples in map(self.samples_of, self.models):
            if samples is not None and self.evaluation is not None:
                of_samples = {
                    "inception_splits": self.evaluation.inception_splits,
                    "steps.images": self.evaluation.steps.images,
                }
                for key, least in (_compared(self.evaluation) | of_samples).items():
                    if least > samples.count:
                        raise ValueError(
                            f"evaluation.{key}: expected at most the {samples.count} samples, found {least}"
                        )
        return self

    def _unfit_for_ood(self, name: str, data: DataSettings | None) -> str | None:
        """In one line why the held-out images cannot be told from a set; None: they can."""
        own = self.data.facts
        if data is None:
            return (
                f"it is made for digits alone, found {self.data.dataset}; leave it out"
                if name == "photographs" and self.data.dataset != "digits"
                else None
            )
        if data.prepared == self.data.prepared:
            return "expected another set than the experiment's own"
        if data.facts.channels != own.channels:
            channels = f"{own.channels} channel(s), as {self.data.prepared} has, found {data.facts.channels}"
            return f"expected images of {channels}: colour alone would tell them apart; a folder is converted to what its section says"
        if data.facts.side < own.side:
            return f"expected at least {own.side}×{own.side} pixels, as {self.data.prepared} has, found {data.facts.side}×{data.facts.side}"
        return None

    @property
    def _trained(self) -> dict[str, EBMSettings | WGANSettings]:
        """Key of each section that says how an energy or a GAN is trained → the section."""
        stages = {f"variants.{name}.{self.stage_of(name).name}": self.stage_of(name).settings for name in self.variants}
        return {
            where: section
            for where, section in {"ebm": self.ebm, **stages}.items()
            if isinstance(section, EBMSettings | WGANSettings)
        }

    def too_few(self, train: int, heldout: int) -> str | None:
        """In one line which setting asks for more images than there are; None: there are enough.

        Args:
            train: number of images to train on.
            heldout: number of images that are held out.
        """
        asked = {"nvae.training.batch": self.nvae.training.batch}
        for where, section in self._trained.items():
            asked |= (
                {f"{where}.batch": section.batch}
                if isinstance(section, WGANSettings)
                else {f"{where}.training.batch": section.training.batch}
            )
        if self.evaluation is not None:
            asked |= {f"evaluation.{key}": found for key, found in _compared(self.evaluation).items()}
            if self.evaluation.classifier is not None and not self.data.facts.stacks:
                asked["evaluation.classifier.batch"] = self.evaluation.classifier.batch
        for where, found in asked.items():
            if found > train:
                return f"{where}: expected at most the {train} training images, found {found}"
        if self.evaluation is not None and heldout < 2:
            return f"evaluation: expected at least 2 held-out images, found {heldout}; data.heldout says how many are"
        return None

    @property
    def judged(self) -> str:
        """The data set that the classifier is trained on: the experiment's own, or the one whose images its stacks are made of."""
        return self.data.facts.stacks or self.data.prepared

    @property
    def sets(self) -> list[DataSettings]:
        """The data sets that have to be prepared: the experiment's own, the one whose images its stacks are made of, and those of OOD detection."""
        stacks = self.data.facts.stacks
        return [self.data, *([DataSettings(dataset=stacks, path=self.data.path)] if stacks else []), *self.ood_data]

    @property
    def ood_data(self) -> list[DataSettings]:
        """The data sets that held-out images are told from."""
        return (
            [] if self.evaluation is None else [data for data in self.evaluation.ood_sets.values() if data is not None]
        )

    @property
    def missing(self) -> list[str]:
        """What the pipeline needs and this experiment does not have, in words; it can still be described, and its stages run by hand."""
        return [f"a section {name}" for name in ("ebm", "samples", "evaluation") if getattr(self, name) is None]

    def hash(self) -> str:
        """Hash of every setting that a figure depends on; `resources` are left out, and where raw files and weights stand."""
        placeless = self.model_copy(update={"evaluation": self.evaluation and self.evaluation.without_paths})
        return fingerprint(placeless.model_dump(exclude={"resources": True, "data": {"path"}}))


def _compared(evaluation: EvaluationSettings) -> dict[str, int]:
    """Settings of the evaluation that ask for as many samples, and for as many training images."""
    return {
        "kid_subset_size": evaluation.kid_subset_size,
        "precision_recall.images": evaluation.precision_recall.images,
    }


def changed(settings: S, changes: dict[str, Any], where: str) -> S:
    """`settings` with other values for some of them.

    Args:
        changes: the values under the names of the settings, groups of settings as dictionaries again; lists are replaced.
        where: key of `changes` in the file, for the error.

    Raises:
        ValueError: an unknown setting or a value that it cannot have.
    """
    try:
        return type(settings).model_validate(_merged(settings, changes))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join([where, *(str(part) for part in problem["loc"])])
        raise ValueError(f"{key}: {problem['msg'].removeprefix('Value error, ')}, found {problem['input']!r}") from None


def _merged(settings: Settings, changes: dict[str, Any]) -> dict[str, Any]:
    """Values of `settings` with `changes`, group by group; from the models, because dumps leave out the defaults of `later`."""
    values = dict(settings)
    both = {
        key: _merged(group, value)
        for key, value in changes.items()
        if isinstance(value, dict) and isinstance(group := values.get(key), Settings)
    }
    return {**values, **changes, **both}


STAGES: dict[str, type[Settings]] = {
    "data": DataSettings,
    "nvae": NVAESettings,
    "ebm": EBMSettings,
    "wgan": WGANSettings,
    "samples": SamplesSettings,
    "evaluation": EvaluationSettings,
    "classifier": ClassifierSettings,
    "extractor": ExtractorSettings,
}
