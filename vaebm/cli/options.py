"""Arguments and options shared by several commands, and shell completion."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from vaebm.config import DATASETS

SettingsFile = Annotated[Path, typer.Argument(help="Settings file of the stage; Snakemake writes it under results/.")]
Data = Annotated[Path, typer.Option(help="manifest.json of the prepared data set.")]
NVAEModel = Annotated[Path, typer.Option("--nvae", help="model.safetensors of the NVAE.")]
MeasuredNVAE = Annotated[
    Path | None, typer.Option("--nvae", help="model.safetensors of the NVAE; omit it for images of another program.")
]
EnergyModel = Annotated[
    Path | None, typer.Option("--energy", help="model.safetensors of the energy network; omit it for the NVAE alone.")
]
PriorModel = Annotated[
    Path | None, typer.Option("--prior", help="model.safetensors of the energy on noise, if the variant has one.")
]
ClassifierModel = Annotated[
    Path | None, typer.Option("--classifier", help="model.safetensors of the classifier, if the experiment trains one.")
]
OODManifests = Annotated[
    list[Path] | None,
    typer.Option(help="manifest.json of an out-of-distribution data set; repeat the option for several."),
]
OutputModel = Annotated[Path, typer.Option(help="Output file (.safetensors).")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads.")]
GPUs = Annotated[int, typer.Option(min=0, help="GPUs; 0: the CPU.")]
TimeLimit = Annotated[
    float | None, typer.Option(min=0, help="Minutes after which to save and stop; repeat the command to resume.")
]
CheckpointEvery = Annotated[float, typer.Option(min=0, help="Seconds between two checkpoints.")]


def data_sets(incomplete: str) -> list[tuple[str, str]]:
    """Shell completion: names of the data sets, with their contents."""
    return [
        (name, f"{facts.side}×{facts.side}, {facts.channels} channel(s), {facts.train:,} training images")
        for name, facts in DATASETS.items()
        if name.startswith(incomplete)
    ]


def experiments_here(incomplete: str) -> list[str]:
    """Shell completion: experiments of the current folder."""
    return sorted(path.stem for path in Path("config/experiments").glob("*.yaml") if path.stem.startswith(incomplete))


Command = Callable[[Callable[..., None]], Callable[..., None]]


def in_group(group: typer.Typer, example: str, name: str | None = None) -> Command:
    """Register a command whose help ends with an example; its name is that of the function unless `name` is given."""
    return group.command(name, epilog=f"Example: `vaebm {example}`")
