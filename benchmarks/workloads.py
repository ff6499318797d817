"""What speed.py times: the chain, an iteration of the energy's training, a step of the NVAE's and sampling, each in several ways."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from as_published import Unprepared, as_published
from timing import Work
from torch import Tensor

from vaebm.cli.describe import EXPERIMENTS
from vaebm.config import (
    DATASETS,
    ChainSettings,
    EBMSettings,
    EBMTrainingSettings,
    EnergyNetworkSettings,
    NVAENetworkSettings,
    NVAETrainingSettings,
)
from vaebm.config.yaml_files import read_experiment
from vaebm.ebm.iteration import Trainer as EBMTrainer
from vaebm.energy.network import EnergyNetwork
from vaebm.fast import move
from vaebm.model import VAEBM, sample_noise
from vaebm.noise import NoiseSource
from vaebm.nvae.model import NVAE
from vaebm.nvae.train import Trainer as NVAETrainer
from vaebm.system.device import place, seeded
from vaebm.system.precision import chain_type

CHAIN_STEPS = 4
"""Of the chains within iterations and sampling on a CPU."""
LANGEVIN_STEPS = 2
"""Of the chain whose time, divided by them, is that of a Langevin step."""


@dataclass(frozen=True)
class Way:
    """How something is computed."""

    kind: str
    """`as published`, `plain` or `fast`."""
    precision: str = "float32"
    """As in the settings; chains in bfloat16 are for `fast` alone."""

    def __str__(self) -> str:
        return self.kind if self.precision == "float32" else f"{self.kind}, {self.precision}"


BASELINE = Way("as published")
HOST_WAYS = (BASELINE, Way("plain"), Way("fast"))
GPU_WAYS = (
    BASELINE,
    Way("as published", "tf32"),
    Way("plain"),
    Way("fast"),
    Way("fast", "tf32"),
    Way("fast", "bfloat16"),
)


@dataclass(frozen=True)
class Setup:
    """What is timed."""

    name: str
    network: NVAENetworkSettings
    training: NVAETrainingSettings
    ebm: EBMSettings | None
    shape: tuple[int, int, int]
    batch: int
    """Chains, and images of a training step."""
    steps: int
    """Of the chain of sampling."""


def reduced(batch: int) -> Setup:
    """CIFAR-10's architecture with 32 channels instead of 128, 6 groups instead of 30, and an energy of 32 channels."""
    network = NVAENetworkSettings(
        channels_encoder=32,
        channels_decoder=32,
        groups=[6],
        latents=20,
        preprocess_blocks=1,
        preprocess_cells=2,
        postprocess_cells=2,
        cells_encoder=2,
        cells_decoder=2,
        flows=1,
    )
    ebm = EBMSettings(
        network=EnergyNetworkSettings(channels=32, widths=[1, 1, 2, 2, 2, 2], down=[0, 2, 4]),
        potential="density",
        chain=ChainSettings(steps=CHAIN_STEPS, step_size=8e-5),
        training=EBMTrainingSettings(iterations=1000, batch=batch, learning_rate=4e-5),
    )
    return Setup(
        "CIFAR-10, reduced",
        network,
        NVAETrainingSettings(epochs=400, batch=batch),
        ebm,
        (3, 32, 32),
        batch,
        CHAIN_STEPS,
    )


def of_experiment(name: str, batch: int | None, device: torch.device) -> Setup:
    """The networks and settings of an experiment, a name or a file."""
    path = Path(name)
    experiment = read_experiment(path if path.suffix else EXPERIMENTS / f"{name}.yaml")
    facts, ebm = DATASETS[experiment.data.dataset], experiment.ebm
    batch = batch or (
        ebm.training.batch
        if ebm is not None
        else experiment.nvae.training.micro_batch or experiment.nvae.training.batch
    )
    training = experiment.nvae.training.model_copy(update={"batch": batch, "micro_batch": None})
    steps = experiment.samples.chain.steps if experiment.samples is not None and device.type == "cuda" else CHAIN_STEPS
    if ebm is not None:
        chain = ebm.chain if device.type == "cuda" else ebm.chain.model_copy(update={"steps": CHAIN_STEPS})
        ebm = ebm.model_copy(
            update={"chain": chain, "training": ebm.training.model_copy(update={"batch": batch}), "replay": None}
        )
    return Setup(name, experiment.nvae.network, training, ebm, (facts.channels, facts.side, facts.side), batch, steps)


_built: dict[tuple[str, torch.device], tuple[NVAE, EnergyNetwork | None]] = {}
"""What `build` copies: to draw the weights of a large network takes longer than to time it."""


def build(setup: Setup, device: torch.device) -> tuple[NVAE, EnergyNetwork | None]:
    """Random networks, as the stages have them."""
    if (setup.name, device) not in _built:
        with seeded(0):
            nvae = NVAE(setup.network, setup.shape)
            energy = None if setup.ebm is None else EnergyNetwork(setup.ebm.network, setup.shape[0])
        if energy is not None:
            energy.initialize(torch.rand(16, *setup.shape, generator=torch.Generator().manual_seed(0)))
        _built[setup.name, device] = place(nvae.eval(), device), None if energy is None else place(energy, device)
    return copy.deepcopy(_built[setup.name, device])


def frozen(nvae: NVAE, energy: EnergyNetwork, way: Way, potential: str) -> VAEBM:
    """The pair, with copies of the networks where they compute as published."""
    if way.kind == "as published":
        nvae, energy = as_published(nvae), as_published(energy)
    kind = VAEBM if way.kind == "fast" else Unprepared
    model = kind(nvae.requires_grad_(False), energy.requires_grad_(False), potential)  # type: ignore[arg-type]
    model.chain_type = chain_type(way.precision)
    return model


def langevin_step(setup: Setup, device: torch.device, way: Way) -> Work:
    """Steps of a chain; what is prepared once a chain is not in it."""
    nvae, energy = build(setup, device)
    assert energy is not None and setup.ebm is not None
    model, noise = frozen(nvae, energy, way, setup.ebm.potential), NoiseSource(0, "speed", range(setup.batch))
    eps_z, eps_x = model.noise_like_prior(noise)
    return functools.partial(
        move,
        model.chain_potential(),
        [*eps_z, eps_x],
        steps=LANGEVIN_STEPS,
        step_size=setup.ebm.chain.step_size,
        noise=noise,
    )


def ebm_iteration(setup: Setup, device: torch.device, way: Way) -> Work:
    """One update of the energy with its chains."""
    nvae, energy = build(setup, device)
    assert energy is not None and setup.ebm is not None
    if way.kind == "as published":
        nvae, energy = as_published(nvae), as_published(energy)
    stage = setup.ebm.model_copy(
        update={"training": setup.ebm.training.model_copy(update={"precision": way.precision})}
    )
    trainer = EBMTrainer(nvae.requires_grad_(False), energy, stage, seed=0)
    if way.kind != "fast":
        trainer.vaebm = Unprepared(nvae, energy, setup.ebm.potential)
    images = grey_levels(setup, device)

    def work() -> None:
        trainer.gradients(images, 0)
        trainer.update(stage.training.learning_rate)

    return work


def nvae_step(setup: Setup, device: torch.device, way: Way) -> Work:
    """One update of the NVAE, regularisers included."""
    nvae, _ = build(setup, device)
    training = setup.training.model_copy(update={"precision": way.precision})
    trainer = NVAETrainer((as_published(nvae) if way.kind == "as published" else nvae).train(), training, 1000, seed=0)
    return functools.partial(trainer.step, grey_levels(setup, device), 0, 1e-4, penalise=True)


def sampling(setup: Setup, device: torch.device, way: Way) -> Work:
    """Images from noise, through chain and decoder."""
    nvae, energy = build(setup, device)
    assert energy is not None and setup.ebm is not None
    model = frozen(nvae, energy, way, setup.ebm.potential)
    return functools.partial(
        model.images, sample_noise(0, range(setup.batch)), steps=setup.steps, step_size=setup.ebm.chain.step_size
    )


def grey_levels(setup: Setup, device: torch.device) -> Tensor:
    """A batch of random images, uint8 as the stages keep them."""
    return torch.randint(
        0, 256, (setup.batch, *setup.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    ).to(device)


WORKS: dict[str, Callable[[Setup, torch.device, Way], Work]] = {
    "langevin_step": langevin_step,
    "ebm_iteration": ebm_iteration,
    "nvae_step": nvae_step,
    "sampling": sampling,
}
CHAINLESS = ("nvae_step",)
"""What an experiment without an energy has; here the plain modules are the package's way."""
PARTS = {"langevin_step": LANGEVIN_STEPS}
"""By what the time of a work is divided."""


def ways(name: str, device: torch.device) -> list[Way]:
    """The ways in which a work can be done; a training of the NVAE has its bfloat16, that of autocast, as published too."""
    found = list(HOST_WAYS if device.type == "cpu" else GPU_WAYS)
    if name in CHAINLESS:
        found = [way for way in found if way.kind != "plain"]
        found += [Way("as published", "bfloat16")] * (device.type == "cuda")
    return found
