"""A model as a folder of config.json, model.safetensors and README.md, the layout of the Hugging Face hub."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt

from vaebm.config import EnergyNetworkSettings, NVAENetworkSettings
from vaebm.config.base import Settings
from vaebm.config.ebm import ChainSettings, Positives, PotentialKind, Start
from vaebm.config.yaml_files import read_yaml, validate
from vaebm.system.errors import UserError, brief
from vaebm.system.files import MODEL

CONFIG, CARD = "config.json", "README.md"


class PretrainedConfig(Settings):
    """config.json: everything from which `VAEBM.from_pretrained` builds the model."""

    nvae: NVAENetworkSettings
    shape: Annotated[list[PositiveInt], Field(min_length=3, max_length=3)]
    """(C, H, W) of the images."""
    energy: EnergyNetworkSettings | None
    potential: PotentialKind
    start: Start
    positives: Positives
    chain: ChainSettings
    """The test chain."""


def find_folder(source: Path | str) -> Path:
    """A folder of a model, or that of a hub repository, which is downloaded once.

    Raises:
        UserError: no folder of that name, and no repository, or none that can be reached.
    """
    if (folder := Path(source)).is_dir():
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), allow_patterns=[CONFIG, MODEL, CARD]))
    except Exception as error:  # of the network, of the hub, and of a name that is none
        raise UserError(
            f"{source}: expected a folder of a model (`save_pretrained`), or a repository of the Hugging Face hub, "
            f"found neither ({brief(error)})"
        ) from None


def read_config(folder: Path) -> PretrainedConfig:
    """Read config.json.

    Raises:
        UserError: it is missing or damaged, or has other keys.
    """
    return validate(PretrainedConfig, read_yaml(folder / CONFIG), str(folder / CONFIG))


def upload(folder: Path, repository: str, private: bool) -> str:
    """Create a hub repository unless it exists, upload `folder` to it in one commit, and return its address."""
    from huggingface_hub import HfApi

    api = HfApi()
    address = str(api.create_repo(repository, private=private, exist_ok=True))
    api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload of a VAEBM")
    return address


def card(config: PretrainedConfig, **facts: Any) -> str:
    """README.md of a model: what it is, how to use it, and the `facts` of the run that are known (card.md.j2)."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    template = Environment(
        loader=PackageLoader("vaebm.model", "."), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    known = {"repository": "ORGANISATION/NAME", "licence": None, "record": None, "rows": []} | facts
    return template.get_template("card.md.j2").render(config=config, **known)
