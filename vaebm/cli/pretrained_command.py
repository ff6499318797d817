"""Command `vaebm pretrained`."""

from pathlib import Path
from typing import Annotated

import typer

from vaebm.cli.commands import command
from vaebm.cli.options import Data, OutputModel, SettingsFile
from vaebm.system.startup import imports


@command(
    "pretrained results/cifar10_published/nvae/seed0/nvae.yaml --data data/cifar10/manifest.json --model m.safetensors"
)
def pretrained(
    settings: SettingsFile,
    data: Data,
    model: OutputModel,
    nvae: Annotated[Path | None, typer.Option(help="model.safetensors of the NVAE below an energy.")] = None,
) -> None:
    """Take the model of stage nvae or ebm from the checkpoint that its settings name, instead of training it."""
    with imports():
        from vaebm.model.from_checkpoint import run
    run(settings, data, nvae, model)
