"""Commands of jobs that only some experiments have."""

from pathlib import Path
from typing import Annotated

import typer

from vaebm.cli import options
from vaebm.cli.commands import EXAMPLE_RUN, command
from vaebm.system.startup import imports


@command(
    "pretrained results/cifar10_published/nvae/seed0/nvae.yaml "
    "--data data/cifar10/manifest.json --model model.safetensors"
)
def pretrained(
    settings: options.SettingsFile,
    data: options.Data,
    model: options.OutputModel,
    nvae: Annotated[Path | None, typer.Option(help="model.safetensors of the NVAE, for an energy.")] = None,
) -> None:
    """Take the model of stage nvae or ebm from the checkpoint that its settings name, instead of training it."""
    with imports():
        from vaebm.model.from_checkpoint import run
    run(settings, data, nvae, model)


@command(
    "prior results/stacked_digits_prior/prior/seed0/prior.yaml --data data/stacked_digits/manifest.json "
    "--nvae results/stacked_digits_prior/nvae/seed0/model.safetensors --model model.safetensors"
)
def prior(
    settings: options.SettingsFile,
    data: options.Data,
    nvae: options.NVAEModel,
    model: options.OutputModel,
    threads: options.Threads = 1,
    gpus: options.GPUs = 0,
    time_limit: options.TimeLimit = None,
    checkpoint_every: options.CheckpointEvery = 60.0,
) -> None:
    """Train the energy on noise (section `prior`), which corrects the proportions of the classes."""
    with imports():
        from vaebm.prior.train import run
        from vaebm.training.loop import Limits
    run(settings, data, nvae, model, threads=threads, gpus=gpus, limits=Limits(time_limit, checkpoint_every))


@command(
    "wgan results/digits_ablation/wgan/seed0/wgan.yaml --data data/digits/manifest.json "
    "--nvae results/digits_ablation/nvae/seed0/model.safetensors --model model.safetensors"
)
def wgan(
    settings: options.SettingsFile,
    data: options.Data,
    nvae: options.NVAEModel,
    model: options.OutputModel,
    threads: options.Threads = 1,
    gpus: options.GPUs = 0,
    time_limit: options.TimeLimit = None,
    checkpoint_every: options.CheckpointEvery = 60.0,
) -> None:
    """Train the NVAE's decoder as the generator of a GAN, for the ablation."""
    with imports():
        from vaebm.ebm.wgan import run
        from vaebm.training.loop import Limits
    run(settings, data, nvae, model, threads=threads, gpus=gpus, limits=Limits(time_limit, checkpoint_every))


@command(
    f"ood {EXAMPLE_RUN}/evaluation/evaluation.yaml --data data/digits/manifest.json "
    f"--nvae results/digits/nvae/seed0/model.safetensors --energy {EXAMPLE_RUN}/model.safetensors "
    f"--output {EXAMPLE_RUN}/evaluation/ood.json --ood data/mnist/manifest.json",
    "ood",
)
def detect(
    settings: options.SettingsFile,
    data: options.Data,
    nvae: options.NVAEModel,
    output: Annotated[Path, typer.Option(help="Output file: …/evaluation/ood.json.")],
    energy: options.EnergyModel = None,
    prior: options.PriorModel = None,
    ood: options.OODManifests = None,
    pictures: Annotated[
        Path | None,
        typer.Option(help="Folder of the pictures; default: pictures, next to the output.", show_default=False),
    ] = None,
    threads: options.Threads = 1,
    gpus: options.GPUs = 0,
) -> None:
    """Measure out-of-distribution detection, where a set has to be prepared first."""
    with imports():
        from vaebm.evaluation.stage import run_ood
        from vaebm.system.device import setup_device
    run_ood(settings, data, nvae, energy, ood or [], output, setup_device(threads, gpus), prior, pictures)
