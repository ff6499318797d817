"""Data sets: what the settings know of each, and the section `data` of an experiment."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import Field, PositiveInt, field_validator, model_validator

from vaebm.config.base import Settings
from vaebm.config.raw_files import LAYOUTS, USER_SETS


class DatasetFacts(NamedTuple):
    """What the settings of an experiment have to fit."""

    side: int
    """Height and width of the images, padding included."""
    channels: int
    """Of the images."""
    train: int | None
    """Training images; None: as many as the user's files hold."""
    heldout: int | None
    """Held-out images; None: as many as the user's files hold."""
    stacks: str | None = None
    """The greyscale set whose images are the channels of its own."""


DATASETS = {
    "digits": DatasetFacts(side=8, channels=1, train=1500, heldout=297),
    "stacked_digits": DatasetFacts(side=8, channels=3, train=15_000, heldout=2970, stacks="digits"),
    "mnist": DatasetFacts(side=32, channels=1, train=60_000, heldout=10_000),
    "stacked_mnist": DatasetFacts(side=32, channels=3, train=60_000, heldout=10_000, stacks="mnist"),
    "cifar10": DatasetFacts(side=32, channels=3, train=50_000, heldout=10_000),
    "cifar100": DatasetFacts(side=32, channels=3, train=50_000, heldout=10_000),
    "svhn": DatasetFacts(side=32, channels=3, train=73_257, heldout=26_032),
    "celeba64": DatasetFacts(side=64, channels=3, train=162_770, heldout=19_867),
    "lsun_church64": DatasetFacts(side=64, channels=3, train=126_227, heldout=300),
    "celebahq256": DatasetFacts(side=256, channels=3, train=27_000, heldout=3_000),
}
"""The registry of `vaebm.data`, which imports torch and so cannot be asked here; a test compares the two."""


class DataSettings(Settings):
    """Which images."""

    dataset: Annotated[str, Field(json_schema_extra={"enum": [*DATASETS, *USER_SETS]})]
    """Name in the registry of `vaebm.data`; `folder`: pictures of the user's, `arrays`: a file .npz of the user's."""
    path: Annotated[str, Field(min_length=1)] | None = None
    """Where the raw files stand, seen from the project's folder; none: raw/<dataset>, where what can be fetched is fetched to."""
    name: Annotated[str, Field(pattern=r"^\w+$")] | None = None
    """What the user's files are called; prepared under data/<name>. None, as for every other data set: the data set's name."""
    side: PositiveInt | None = None
    """Height and width that the user's pictures are brought to, or that the arrays have."""
    channels: Literal[1, 3] | None = None
    """Of the user's images: 1 grey, 3 colour."""
    heldout: Annotated[float, Field(gt=0, le=1)] | None = None
    """Fraction of the user's images that are held out; none where a file .npz says itself which; 1, for OOD detection alone: all of them."""

    @field_validator("dataset")
    @classmethod
    def _is_registered(cls, name: str) -> str:
        if name not in DATASETS and name not in USER_SETS:
            raise ValueError(
                f"there is no data set {name!r}; data sets that exist: {', '.join([*DATASETS, *USER_SETS])}"
            )
        return name

    @model_validator(mode="after")
    def _says_what_only_the_user_knows(self) -> DataSettings:
        about = {"name": self.name, "side": self.side, "channels": self.channels, "heldout": self.heldout}
        if self.dataset not in USER_SETS:
            if given := [key for key, value in about.items() if value is not None]:
                raise ValueError(
                    f"{given[0]}: only the sets {' and '.join(USER_SETS)} have it, {self.dataset} is known; leave it out"
                )
            return self
        for key in ("side", "channels", *(["heldout"] if self.dataset == "folder" else [])):
            if about[key] is None:
                raise ValueError(f"{key}: expected a value for the set {self.dataset}, found none")
        if self.name in DATASETS:
            raise ValueError(f"name: {self.name} is another data set's; choose another")
        return self

    @property
    def prepared(self) -> str:
        """Name of the folder under data/."""
        return self.name or self.dataset

    @property
    def called(self) -> str:
        """What figures call the set: its name, without the side that it ends with, since figures are of images of another."""
        return self.prepared if self.dataset in USER_SETS else self.dataset.removesuffix(str(self.facts.side))

    @property
    def bare(self) -> bool:
        """Whether the name of the data set says everything: it is made of no files."""
        return self.dataset not in USER_SETS and self.dataset not in LAYOUTS

    @property
    def facts(self) -> DatasetFacts:
        """What the other settings have to fit."""
        if self.side is None or self.channels is None:
            return DATASETS[self.dataset]
        return DatasetFacts(self.side, self.channels, train=None, heldout=None)
