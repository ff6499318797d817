"""A model as a folder of config.json, model.safetensors and README.md, the layout of the Hugging Face hub."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Self

import torch
from pydantic import Field, PositiveInt, SerializeAsAny
from torch import nn

from vaebm.config import EnergyNetworkSettings, NoiseEnergySettings, NVAENetworkSettings
from vaebm.config.base import Settings, later
from vaebm.config.ebm import LangevinSettings, Positives, PotentialKind, Start
from vaebm.config.yaml_files import read_yaml, validate
from vaebm.records.templates import render
from vaebm.system.checkpoint import load_model, save_model
from vaebm.system.device import to_device_channels_last
from vaebm.system.errors import UserError, brief
from vaebm.system.files import MODEL, write_json, writing

MODEL_CONFIG, CARD = "config.json", "README.md"


class PretrainedConfig(Settings):
    """config.json: everything from which `VAEBM.from_pretrained` builds the model."""

    nvae: NVAENetworkSettings
    shape: Annotated[list[PositiveInt], Field(min_length=3, max_length=3)]
    """(C, H, W) of the images."""
    energy: SerializeAsAny[EnergyNetworkSettings] | None
    potential: PotentialKind
    start: Start
    positives: Positives
    chain: SerializeAsAny[LangevinSettings]
    """The test chain."""
    prior: NoiseEnergySettings | None = later(None)


def find_folder(source: Path | str) -> Path:
    """A folder of a model, or that of a hub repository, which is downloaded once.

    Raises:
        UserError: no folder of that name, and no repository, or none that can be reached.
    """
    if (folder := Path(source)).is_dir():
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), allow_patterns=[MODEL_CONFIG, MODEL, CARD]))
    except Exception as error:  # of the network, of the hub, and of a name that is none
        raise UserError(
            f"{source}: expected a folder of a model (`save_pretrained`), or a repository of the Hugging Face hub, "
            f"found neither ({brief(error)})"
        ) from None


def model_card(config: PretrainedConfig, **facts: Any) -> str:
    """README.md of a model: what it is, how to use it, and the `facts` of the run that are known (card.md.j2)."""
    known = {"repository": "ORGANISATION/NAME", "licence": None, "record": None, "rows": [], "training": {}} | facts
    return render("model/card.md.j2", config=config, **known)


class HubModel(nn.Module):
    """A module that is saved as a folder, and loaded from one or from the hub."""

    @property
    def config(self) -> PretrainedConfig:
        """Architecture, potential and test chain."""
        raise NotImplementedError

    @classmethod
    def of_config(cls, config: PretrainedConfig) -> Self:
        """Build the model of a configuration, with random weights."""
        raise NotImplementedError

    def save_pretrained(self, folder: Path | str, readme: str | None = None) -> None:
        """Write config.json, model.safetensors and README.md to `folder`, in the layout of the Hugging Face hub.

        Args:
            folder: made if it does not exist.
            readme: text of README.md; None: what the model is, and how to use it.

        Raises:
            UserError: the energy is a module without `settings`, or a file cannot be written.
        """
        folder, config = Path(folder), self.config
        save_model(folder / MODEL, "vaebm", {}, self.state_dict())
        write_json(folder / MODEL_CONFIG, config.model_dump(mode="json"))
        with writing(folder / CARD) as stream:
            stream.write((readme or model_card(config)).encode())

    @classmethod
    def from_pretrained(cls, source: Path | str, device: torch.device | str = "cpu") -> Self:
        """Load the output of `save_pretrained`, frozen.

        Args:
            source: its folder, or the id of a repository on the Hugging Face hub, which is downloaded once.
            device: device of the weights.

        Raises:
            UserError: neither is there, a file is damaged, or the weights do not fit config.json.
        """
        folder = find_folder(source)
        config = validate(PretrainedConfig, read_yaml(folder / MODEL_CONFIG), str(folder / MODEL_CONFIG))
        weights = load_model(folder / MODEL, "vaebm")["weights"]
        try:
            model = cls.of_config(config)
            model.load_state_dict(weights)
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"{folder / MODEL}: expected the weights of {MODEL_CONFIG}'s networks, found others ({brief(error)})"
            ) from None
        return to_device_channels_last(model.requires_grad_(False).eval(), torch.device(device))

    def push_to_hub(self, repository: str, readme: str | None = None, private: bool = False) -> str:
        """Upload the output of `save_pretrained` to a hub repository in one commit, and return its address.

        Args:
            repository: id, OWNER/NAME; made if it does not exist.
            readme: text of README.md; None: what the model is, and how to use it.
            private: make a new repository private.
        """
        from huggingface_hub import HfApi

        api = HfApi()
        address = str(api.create_repo(repository, private=private, exist_ok=True))
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, readme or model_card(self.config, repository=repository))
            api.upload_folder(repo_id=repository, folder_path=Path(folder), commit_message="Upload of a VAEBM")
        return address
