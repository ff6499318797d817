"""Section `data` of an experiment."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from vaebm.config.base import Choice, Name, Registered
from vaebm.config.datasets import DATASETS, USER_SETS, DatasetFacts


class DataSettings(Choice):
    """Images of the experiment."""

    registry = DATASETS
    tag: ClassVar = "dataset"
    dataset: Annotated[str, Registered(DATASETS, after=USER_SETS)]
    """Name of a registered data set, `folder` for pictures of your own, or `arrays` for a .npz file of your own."""
    path: Annotated[str, Field(min_length=1)] | None = None
    """Path of the raw files, relative to the project; default: raw/<dataset>, the only place for downloads."""
    name: Name | None = None
    """Name of your own files, prepared under data/<name>; default: the name of the data set."""
    side: PositiveInt | None = None
    """Height and width to which your pictures are resized, or those of your arrays."""
    channels: Literal[1, 3] | None = None
    """Channels of your images: 1 grey, 3 colour."""
    heldout: Annotated[float, Field(gt=0, le=1)] | None = None
    """Fraction of your images to hold out; omit it if the .npz file has held-out arrays. 1 (all) is for OOD sets."""

    @model_validator(mode="after")
    def _describes_user_files_only(self) -> Self:
        about = {"name": self.name, "side": self.side, "channels": self.channels, "heldout": self.heldout}
        if self.dataset not in USER_SETS:
            if given := [key for key, value in about.items() if value is not None]:
                sets = " and ".join(USER_SETS)
                raise ValueError(f"{given[0]}: only the sets {sets} have it, {self.dataset} is known; leave it out")
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
    def display_name(self) -> str:
        """Name in metrics: without the side at its end, because metrics use images of another side."""
        return self.prepared if self.dataset in USER_SETS else self.dataset.removesuffix(str(self.facts.side))

    @property
    def needs_files(self) -> bool:
        """Whether the images are read from raw files, or depend on settings."""
        return self.dataset in USER_SETS or self.facts.raw is not None or self.facts.settings is not None

    @property
    def facts(self) -> DatasetFacts:
        """Properties that the other settings have to fit."""
        if self.side is None or self.channels is None:
            return DATASETS[self.dataset]
        return DatasetFacts(self.side, self.channels, None, None, prepare=USER_SETS[self.dataset])
