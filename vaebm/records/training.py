"""What training.json contains."""

from typing import Annotated, Any, Literal

from pydantic import Field

from vaebm.config import Settings
from vaebm.config.base import later

FolderName = Annotated[str, Field(pattern=r"^[^/\\]*[^/\\.][^/\\]*$")]
"""No path."""
Changed = bool | Literal["unknown"]
"""Whether the program had uncommitted changes."""

Layout = Literal["published", "model", "pretrained"]
"""A file of the authors' program, a model file, or a folder of `save_pretrained`."""


class GuardEvent(Settings):
    """A problem of a training, and the action taken."""

    iteration: int
    reason: str
    action: str


class Selection(Settings):
    """The snapshot that became the model, and the comparison."""

    rule: str
    """Description of the rule."""
    candidates: dict[int, float | None]
    """Iteration → distance; None if its images are not finite."""
    chosen: int
    """Iteration of the model."""
    last: int
    """Iteration of the last candidate."""


class ModelOrigin(Settings):
    """Where a model that was not trained here is from."""

    source: str
    """As in the settings."""
    layout: Layout
    sha256: str
    """Hash of the file."""
    epoch: int | None = None
    """Epoch of the published training."""
    filled: dict[str, Any] = {}
    """Arguments missing in the file → the values used."""
    version: str
    """Version of this package, which converted it."""


class TrainingRecord(Settings):
    """training.json of an NVAE, an energy or a GAN; within metrics.json without settings and data."""

    stage: FolderName
    steps: int
    seconds: float
    fingerprint: str
    seed: int
    settings: dict[str, Any] | None = None
    data: str | None = None
    nvae: str | None = None
    """Hash of the weights of the NVAE below."""
    prior: str | None = later(None)
    """Hash of the weights of the energy on noise below an energy."""
    status: str
    snapshot: int | None = None
    events: list[GuardEvent] = []
    selection: Selection | None = None
    diagnostics: dict[str, int | float | str | list[float]] | None = None
    """`ChainDiagnostics` of the training chain, or the `problem` with it."""
    parameters: int | None = None
    skipped_steps: int | None = None
    heldout: float | None = None
    model: str
    """Hash of the weights."""
    device: str | None = None
    threads: int | None = None
    processes: int | None = None
    system: dict[str, float] = later({})
    """Peak memory of the first process, under MLflow's prefix of system metrics."""
    commit: str
    changed: Changed
    plugins: list[str] = later([])
    """Name, version and hash of the source of each plug-in."""
    checkpoint: ModelOrigin | None = later(None)
    """None: it was trained here."""


class ClassifierRecord(Settings):
    """training.json of a classifier."""

    status: str
    seed: int
    data: str
    model: str
    accuracy: float
    """Share of the held-out images with the right label, by the network with the features."""
    heldout: int
    wrong: int
    further_wrong: list[int] = later([])
    """Wrong held-out images of each further network."""
