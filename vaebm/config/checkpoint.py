"""Models from elsewhere, which a section names instead of training one."""

import os.path
import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, GetJsonSchemaHandler, SerializerFunctionWrapHandler, model_serializer, model_validator
from pydantic_core import CoreSchema

from vaebm.config.base import OF_TRAINING, Settings, later
from vaebm.system.files import model_of


class CheckpointSettings(Settings):
    """Model from elsewhere, used instead of a training. The source can be given alone."""

    source: Annotated[str, Field(min_length=1)]
    """A published checkpoint, a model file, a folder with one (of a run, or of `save_pretrained`), or the id of a
    repository on the Hugging Face hub. `{seed}` is replaced by the seed."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """SHA-256 of the file; of a folder or a repository, that of its model.safetensors. None: any."""

    @model_validator(mode="before")
    @classmethod
    def _as_group(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """A source or a section."""
        group = handler(schema)
        return {"description": group.pop("description"), "anyOf": [{"type": "string"}, group]}

    def path(self, seed: int | str) -> Path:
        """The local file or folder."""
        return Path(os.path.expanduser(self.source.replace("{seed}", str(seed))))

    def file(self, seed: int | str) -> Path:
        """The local file, or the model file in the local folder."""
        return path if (path := self.path(seed)).is_file() else model_of(path)

    @property
    def is_hub(self) -> bool:
        """Whether the source is no local path but the id of a repository, OWNER/NAME."""
        is_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", self.source) is not None
        return is_id and not self.source.endswith((".pt", ".pth", ".safetensors")) and not self.path(0).exists()


class ModelSettings(Settings):
    """Section of a stage whose model is trained, or taken from a checkpoint."""

    checkpoint: CheckpointSettings | None = later(None)

    @model_validator(mode="after")
    def _taken_or_trained(self) -> Self:
        if self.checkpoint is not None:
            if "network" not in self.model_fields_set:
                expected = "expected the architecture of the checkpoint (`vaebm convert` prints it)"
                raise ValueError(f"network: {expected}, found none")
            if trained := sorted(OF_TRAINING & self.model_fields_set):
                raise ValueError(f"checkpoint: expected no settings of a training with it, found {', '.join(trained)}")
        return self

    @model_serializer(mode="wrap")
    def _without_training(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        return {key: content[key] for key in content if self.checkpoint is None or key not in OF_TRAINING}


def portable(content: Any) -> Any:
    """Plain settings without the local paths of checkpoints, on which no result depends."""
    if not isinstance(content, dict):
        return content
    return {key: _without_path(one) if key == "checkpoint" else portable(one) for key, one in content.items()}


def _without_path(value: Any) -> Any:
    if value is None or (checkpoint := CheckpointSettings.model_validate(value)).is_hub:
        return value
    return {"sha256": checkpoint.sha256}
