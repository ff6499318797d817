"""What the JSON files of results contain; `records.files` reads and writes them."""

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, ConfigDict, Field, RootModel, model_serializer, model_validator

from vaebm.config import KERNELS, Settings
from vaebm.config.base import later
from vaebm.records.metrics import metric
from vaebm.records.training import Changed, FolderName, TrainingRecord

MetricName = Annotated[str, AfterValidator(lambda name: metric(name) and name)]
"""Name in the registry."""
Interval = Annotated[list[float], Field(min_length=2, max_length=2)]
"""95 % bounds over images: [low, high]."""


class Measurement(Settings):
    """One metric of one run."""

    value: float
    """In the metric's unit."""
    samples: int
    """Number of images."""
    interval: Interval | None = None
    """None: not computed."""
    subsets: int | None = None
    """Number of KID subsets."""
    subset_size: int | None = None
    """Images per KID subset."""
    spread_over_subsets: float | None = None
    """Standard deviation over the KID subsets."""
    neighbours: int | None = None
    """k of precision and recall."""
    splits: int | None = None
    """Parts of the samples over which the inception score is averaged."""
    spread_over_splits: float | None = None
    """Standard deviation over the parts."""
    draws: int | None = None
    """Posterior samples per image."""
    unit: str | None = None
    """Unit of the value, where it has one."""
    of: int | None = None
    """Number of modes."""
    spread_over_networks: float | None = None
    """Standard deviation over the networks of the classifier; None: one network."""


class SeedValue(Settings):
    """One metric of one seed, within the record over the seeds."""

    seed: int
    value: float
    interval: Interval | None
    spread: ClassVar[None] = None


class MetricValue(Settings):
    """One metric over the seeds."""

    value: float
    """Mean."""
    spread: float | None
    """Standard deviation; None for one seed."""
    interval: Interval | None
    """None for several seeds: the seeds differ in training, which intervals over images do not cover."""
    samples: int
    seeds: list[int]
    by_seed: list[SeedValue]
    unit: str | None = later(None)


class ShardRecord(Settings):
    """shard-<k>.json: how long a shard of the samples took, its hash, and what it was made from."""

    images: int
    seconds: float
    steps: int
    batch: int
    precision: str = "float32"
    device: str
    threads: int | None
    sha256: str | None = None
    """Hash of the shard's bytes; None: an earlier version wrote it."""
    origin: dict[str, str] = {}
    """`samples.origin_of`: hashes of models and settings, and the indices."""

    @property
    def unit(self) -> str:
        """Seconds on which device, at which batch size and precision."""
        threads = f", {self.threads} thread(s)" if self.threads else ""
        rounded = "" if self.precision == "float32" else f", {self.precision}"
        return f"seconds on {self.device}{threads}, {self.batch} images at once{rounded}"


class AlongChain(Settings):
    """Distance and mean energy of the first `samples` samples after each of `counts` steps; None: not finite.

    In the file, the key of the distances is the metric.
    """

    counts: list[int]
    metric: MetricName
    distances: list[float | None]
    energy: list[float | None]
    samples: int
    gradients: list[int] | None = None
    """Evaluations of the potential and its gradient per chain."""
    seconds: list[float] | None = None
    """Seconds per image for noise, chain and decoding; both are None in results of earlier versions."""

    @model_validator(mode="before")
    @classmethod
    def _from_file(cls, content: Any) -> Any:
        names = [name for name in content if name not in cls.model_fields] if isinstance(content, dict) else []
        if len(names) != 1:
            return content
        rest = {name: value for name, value in content.items() if name != names[0]}
        return rest | {"metric": names[0], "distances": content[names[0]]}

    @model_serializer
    def _to_file(self) -> dict[str, Any]:
        costs = {"gradients": self.gradients, "seconds": self.seconds}
        values = {"counts": self.counts, self.metric: self.distances, "energy": self.energy, "samples": self.samples}
        return values | {name: found for name, found in costs.items() if found is not None}


class NormalizerRecord(Settings):
    """Estimate of log Z, the logarithm of the mean of draws' weights."""

    log_z: float
    standard_error: float
    """To first order; it says little where the effective sample size is small."""
    effective: float
    """Effective sample size (Σ w)² / Σ w² of the weights w."""
    draws: int
    bias: str
    """Direction: `low`, so a log-likelihood by it is high."""


class OODSource(Settings):
    """An out-of-distribution set; all but `images` belong to prepared sets."""

    images: int
    data: str | None = None
    heldout: int | None = None
    side: int | None = None
    users: bool | None = None


class OODRecord(Settings):
    """Out-of-distribution detection of one run."""

    sets: dict[FolderName, OODSource]
    figures: dict[MetricName, Measurement]
    """Every metric of every set and score."""


class DetectionRecord(Settings):
    """ood.json: out-of-distribution detection of one run, measured by a separate job."""

    models: dict[str, str]
    """Network → hash of its weights."""
    data: str
    ood: OODRecord
    metrics: dict[MetricName, Measurement]
    """Those in the table."""
    commit: list[str]
    changed: Changed


class ExtractorRecord(Settings):
    """A feature extractor."""

    kind: str
    name: str
    weights: str
    """Hash."""
    features: int
    networks: int = later(1)
    """Networks of the classifier, over which number of modes and KL are averaged."""
    torch_fidelity: str = Field(alias="torch-fidelity")


class ChainRecord(Settings, extra="allow"):
    """The test chain, with the settings of its kernel that differ from their default."""

    steps: int
    step_size: float
    kernel: str = later("langevin")
    potential: str | None = None
    positives: str | None = None
    """Setting of the energy's training; both are None without an energy."""
    stretch: bool

    @property
    def gradient_evaluations(self) -> int:
        """Gradients of U that each chain computed."""
        return self.steps and self.steps + (KERNELS[self.kernel].first if self.kernel in KERNELS else 0)


class ForeignImages(Settings):
    """Images that another program drew."""

    path: str
    images: int
    sha256: str
    """Hash of the file, or of the names and contents of a folder's files."""


class RunRecord(Settings):
    """metrics.json of one variant with one seed."""

    experiment: FolderName
    variant: FolderName
    seed: int
    metrics: dict[MetricName, Measurement]
    steps: AlongChain | None = later(None)
    ood: OODRecord | None = None
    normalizers: dict[MetricName, NormalizerRecord] = later({})
    """Metric → the estimate of log Z in it."""
    without: dict[MetricName, str]
    """Metric → why it has no value."""
    real: dict[MetricName, Measurement]
    """Metrics of the held-out images."""
    extractor: ExtractorRecord
    further_extractors: list[ExtractorRecord] = later([])
    modes_by: ExtractorRecord | None
    """Classifier of modes; None: the extractor."""
    chain: ChainRecord
    data: str
    users: bool
    """True for files of the user."""
    commit: list[str]
    changed: Changed
    versions: dict[str, str]
    plugins: list[str] = later([])
    models: dict[str, str]
    """Network → hash of its weights."""
    training: dict[str, TrainingRecord]
    """Stage → its record."""
    foreign: ForeignImages | None = later(None)
    """Images that were measured in place of samples, without a model."""

    @property
    def common(self) -> dict[str, Any]:
        """The fields in which all seeds of a variant have to agree."""
        names = ("data", "users", "extractor", "modes_by", "chain", "versions", "plugins", "foreign")
        return {name: getattr(self, name) for name in (*names, "further_extractors")}


class SeedRecord(Settings):
    """One seed, within the record over the seeds."""

    seed: int
    models: dict[str, str]
    training: dict[str, TrainingRecord]
    steps: AlongChain | None
    ood: OODRecord | None = None

    @property
    def own_training(self) -> TrainingRecord | None:
        """Record of the variant's own training, not of the NVAE below; None: images of another program."""
        return next((one for stage, one in self.training.items() if stage != "nvae"), self.training.get("nvae"))


class VariantRecord(Settings):
    """metrics.json of one variant over its seeds."""

    experiment: FolderName
    variant: FolderName
    configuration: str
    """Hash of the experiment's settings."""
    metrics: dict[MetricName, MetricValue]
    without: dict[MetricName, str]
    real: dict[MetricName, Measurement]
    data: str
    users: bool
    extractor: ExtractorRecord
    further_extractors: list[ExtractorRecord] = later([])
    modes_by: ExtractorRecord | None
    chain: ChainRecord
    versions: dict[str, str]
    plugins: list[str] = later([])
    commit: list[str]
    changed: Changed
    tracking: str | None
    """Id of the MLflow run."""
    base: str | None = later(None)
    """Experiment file of a run that has a name of its own."""
    changes: list[str] = later([])
    """Settings that the command line changed, as samples.chain.steps=40."""
    grid: dict[str, Any] = later({})
    """Settings of a combination of a grid → their values."""
    plotted: str | None = later(None)
    """Metric that the report plots over the grid; None: the Fréchet distance."""
    foreign: ForeignImages | None = later(None)
    runs: list[SeedRecord]

    @property
    def values(self) -> dict[str, float]:
        """Metric → its value."""
        return {name: figure.value for name, figure in self.metrics.items()}


class Numbers(RootModel[dict[FolderName, dict[FolderName, dict[MetricName, float]]]]):
    """benchmarks.json: experiment → variant → metric → number."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class MirroredRun(Settings, frozen=False):
    """What MLflow already has of a run: id, lines of the history, metrics, tags, hashes of files."""

    run: str
    parameters: str
    """Fingerprint."""
    lines: int
    history: str
    """Fingerprint of these lines."""
    figures: dict[str, float]
    curves: str
    """Fingerprint; empty before they are mirrored."""
    tags: dict[str, str]
    files: dict[str, str]
    data: list[str] = []
    """Hashes of data sets."""
    ended: bool


class TrackingRecord(Settings, frozen=False):
    """tracking.json: what MLflow already has of an experiment."""

    status: str = ""
    uri: str | None = None
    mlflow: str | None = None
    run: str | None = None
    stages: dict[str, MirroredRun] = {}
    models: dict[str, str] = {}
    """Name of a registered model → hash of networks and chain."""
    whole: MirroredRun | None = None
