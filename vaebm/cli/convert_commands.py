"""Commands `vaebm convert …`."""

from pathlib import Path
from typing import Annotated

import typer

from vaebm.cli.options import in_group
from vaebm.system.startup import imports

convert_commands = typer.Typer(
    help="Convert a published checkpoint, or results of an earlier version, to models of this project.",
    epilog="Example: `vaebm convert nvae checkpoint.pt model.safetensors`",
    no_args_is_help=True,
)
PublishedCheckpoint = Annotated[Path, typer.Argument(help="The published checkpoint.", metavar="OFFICIAL")]
ConvertedModel = Annotated[Path, typer.Argument(help="Output file.", metavar="MODEL")]


@in_group(convert_commands, "convert nvae checkpoint.pt model.safetensors", "nvae")
def convert_nvae(official: PublishedCheckpoint, model: ConvertedModel) -> None:
    """Convert an NVAE with its settings; every key and shape is checked."""
    with imports():
        from vaebm.nvae.published_checkpoint import convert_published_nvae
    convert_published_nvae(official, model)


@in_group(convert_commands, "convert energy EBM_25000.pth model.safetensors", "energy")
def convert_energy(official: PublishedCheckpoint, model: ConvertedModel) -> None:
    """Convert an energy network, identified by its shapes."""
    with imports():
        from vaebm.energy.published_checkpoint import convert_published_energy
    convert_published_energy(official, model)


@in_group(convert_commands, "convert results", "results")
def convert_earlier_results(
    results: Annotated[Path, typer.Argument(help="Folder of the results.")] = Path("results"),
) -> None:
    """Convert the models of an earlier version's results (model.pt); nothing is trained again, nothing removed."""
    with imports():
        from vaebm.cli.convert_results import convert_results
    convert_results(results)
