"""Workloads of speed.py: the chain, training steps of energy and NVAE, and sampling, in several implementations."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from as_published import (
    PublishedSpectralPenalty,
    SeparateParameters,
    Unprepared,
    as_published,
    batch_norm_penalty,
    divergence_in_two_passes,
)
from timing import Workload
from torch import Tensor

from vaebm.cli.describe import EXPERIMENTS
from vaebm.config import EBMSettings, NVAENetworkSettings, NVAETrainingSettings
from vaebm.config.yaml_files import read_experiment
from vaebm.ebm.ahead import AHEAD
from vaebm.ebm.iteration import SMALL, EBMTrainer
from vaebm.energy.network import EnergyNetwork
from vaebm.fast import run_langevin
from vaebm.model import VAEBM, sample_noise
from vaebm.noise import NoiseSource
from vaebm.nvae.model import NVAE
from vaebm.nvae.train import NVAETrainer
from vaebm.system.device import seeded, to_device_channels_last
from vaebm.system.precision import chain_dtype

CHAIN_STEPS = 4
"""Chain steps of training iterations and of sampling on a CPU."""
LANGEVIN_STEPS = 2
"""Chain steps per call of `langevin_step`; its time is divided by them."""


@dataclass(frozen=True)
class Implementation:
    """Implementation and precision of a workload."""

    kind: str
    """`as published`, `plain` or `fast`."""
    precision: str = "float32"
    """As in the settings; chains use bfloat16 only in `fast`."""

    def __str__(self) -> str:
        return self.kind if self.precision == "float32" else f"{self.kind}, {self.precision}"


BASELINE = Implementation("as published")
CPU_IMPLEMENTATIONS = (BASELINE, Implementation("plain"), Implementation("fast"))
GPU_IMPLEMENTATIONS = (
    *(BASELINE, Implementation("as published", "tf32"), Implementation("plain")),
    *(Implementation("fast", precision) for precision in ("float32", "tf32", "bfloat16")),
)


@dataclass(frozen=True)
class Setup:
    """Networks and settings to time."""

    name: str
    network: NVAENetworkSettings
    training: NVAETrainingSettings
    ebm: EBMSettings | None
    shape: tuple[int, int, int]
    batch: int
    """Chains, and images of a training step."""
    steps: int
    """Chain steps of sampling."""


def reduced_cifar10(batch: int) -> Setup:
    """The defaults, which are CIFAR-10's, with 32 channels instead of 128 in both networks, 6 groups instead of 30."""
    network = NVAENetworkSettings(channels_encoder=32, channels_decoder=32, groups=[6], flows=1)
    training, chain = NVAETrainingSettings(batch=batch), {"steps": CHAIN_STEPS, "step_size": 8e-5}
    sections = {"network": {"channels": 32}, "potential": "density", "chain": chain, "training": {"batch": batch}}
    ebm = EBMSettings.model_validate(sections)
    return Setup("CIFAR-10, reduced", network, training, ebm, (3, 32, 32), batch, CHAIN_STEPS)


def setup_from_experiment(name: str, batch: int | None, device: torch.device) -> Setup:
    """Networks and settings of an experiment, given by name or file."""
    path = Path(name)
    experiment = read_experiment(path if path.suffix else EXPERIMENTS / f"{name}.yaml")
    facts, ebm = experiment.data.facts, experiment.ebm
    training = experiment.nvae.training
    batch = batch or (ebm.training.batch if ebm is not None else training.micro_batch or training.batch)
    training = training.model_copy(update={"batch": batch, "micro_batch": None})
    steps = experiment.samples.chain.steps if experiment.samples is not None and device.type == "cuda" else CHAIN_STEPS
    if ebm is not None:
        chain = ebm.chain if device.type == "cuda" else ebm.chain.model_copy(update={"steps": CHAIN_STEPS})
        ebm = ebm.model_copy(
            update={"chain": chain, "training": ebm.training.model_copy(update={"batch": batch}), "replay": None}
        )
    return Setup(name, experiment.nvae.network, training, ebm, (facts.channels, facts.side, facts.side), batch, steps)


_built: dict[tuple[str, torch.device], tuple[NVAE, EnergyNetwork | None]] = {}
"""Networks that `build` copies; drawing the weights of a large network takes longer than timing it."""


def build(setup: Setup, device: torch.device, way: Implementation) -> tuple[NVAE, EnergyNetwork | None]:
    """Networks of an implementation with random weights, as in the stages."""
    if (setup.name, device) not in _built:
        with seeded(0):
            nvae = NVAE(setup.network, setup.shape)
            energy = None if setup.ebm is None else EnergyNetwork(setup.ebm.network, setup.shape[0])
        if energy is not None:
            energy.initialize(torch.rand(16, *setup.shape, generator=torch.Generator().manual_seed(0)))
            energy = to_device_channels_last(energy, device)
        _built[setup.name, device] = to_device_channels_last(nvae.eval(), device), energy
    nvae, energy = copy.deepcopy(_built[setup.name, device])
    if way.kind == "as published":
        return as_published(nvae), None if energy is None else as_published(energy)
    return nvae, energy


def frozen_model(setup: Setup, device: torch.device, way: Implementation) -> VAEBM:
    """The model of an implementation."""
    nvae, energy = build(setup, device, way)
    assert energy is not None and setup.ebm is not None
    kind = VAEBM if way.kind == "fast" else Unprepared
    model = kind(nvae.requires_grad_(False), energy.requires_grad_(False), setup.ebm.potential)
    model.chain_dtype = chain_dtype(way.precision)
    return model


def langevin_step(setup: Setup, device: torch.device, way: Implementation) -> Workload:
    """Steps of a chain, without the preparation before it."""
    model, noise = frozen_model(setup, device, way), NoiseSource(0, "speed", range(setup.batch))
    eps_z, eps_x = model.initial_noise(noise)
    assert setup.ebm is not None
    return functools.partial(
        run_langevin,
        model.chain_potential(),
        [*eps_z, eps_x],
        steps=LANGEVIN_STEPS,
        step_size=setup.ebm.chain.step_size,
        noise=noise,
    )


def ebm_iteration(setup: Setup, device: torch.device, way: Implementation) -> Workload:
    """One update of the energy, with its chains."""
    nvae, energy = build(setup, device, way)
    assert energy is not None and setup.ebm is not None
    training = setup.ebm.training.model_copy(update={"precision": way.precision})
    stage = setup.ebm.model_copy(update={"training": training})
    with training_of(way):
        trainer = EBMTrainer(nvae.requires_grad_(False), energy, stage, seed=0)
    if way.kind != "fast":
        trainer.vaebm = Unprepared(nvae, energy, setup.ebm.potential)
    images, steps = random_images(setup, device), itertools.count()

    def work() -> None:
        for step in itertools.islice(steps, per_call("ebm_iteration", setup)):
            ahead = (trainer.positives(step, images), trainer.negatives(step, images)) if way.kind == "fast" else ()
            with steps_of(way):
                trainer.gradients(images, step, *ahead)
                trainer.update(stage.training.learning_rate)

    return work


def nvae_step(setup: Setup, device: torch.device, way: Implementation) -> Workload:
    """One update of the NVAE, with its regularisers."""
    nvae, _ = build(setup, device, way)
    training = setup.training.model_copy(update={"precision": way.precision})
    with training_of(way):
        trainer = NVAETrainer(nvae.train(), training, 1000, seed=0)
    images = random_images(setup, device)

    def work() -> None:
        with steps_of(way):
            trainer.step(images, 0, 1e-4, penalise=True)

    return work


def sampling(setup: Setup, device: torch.device, way: Implementation) -> Workload:
    """Images from noise, by chain and decoder."""
    model = frozen_model(setup, device, way)
    assert setup.ebm is not None
    chain = setup.ebm.chain.model_copy(update={"steps": setup.steps})
    return functools.partial(model.sample_batch, sample_noise(0, range(setup.batch)), chain)


@contextlib.contextmanager
def training_of(way: Implementation) -> Iterator[None]:
    """In this context a trainer of the published arithmetic has its parameters, spectral penalty and threads."""
    with contextlib.ExitStack() as patches:
        if way.kind == "as published":
            for module in ("vaebm.nvae.train", "vaebm.ebm.iteration"):
                patches.enter_context(mock.patch(f"{module}.FlatParameters", SeparateParameters))
                patches.enter_context(mock.patch(f"{module}.SpectralPenalty", PublishedSpectralPenalty))
            patches.enter_context(mock.patch("vaebm.nvae.train.GRAIN", 0))
        yield


@contextlib.contextmanager
def steps_of(way: Implementation) -> Iterator[None]:
    """In this context steps of the published arithmetic have its penalty of batch norms, and passes of the energy."""
    with contextlib.ExitStack() as patches:
        if way.kind == "as published":
            patches.enter_context(mock.patch("vaebm.nvae.train.batch_norm_penalty", batch_norm_penalty))
            patches.enter_context(mock.patch("vaebm.ebm.iteration.contrastive_divergence", divergence_in_two_passes))
        yield


def random_images(setup: Setup, device: torch.device) -> Tensor:
    """A batch of random images, uint8 as in the stages."""
    shape, generator = (setup.batch, *setup.shape), torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)


WORKLOADS: dict[str, Callable[[Setup, torch.device, Implementation], Workload]] = {
    "langevin_step": langevin_step,
    "ebm_iteration": ebm_iteration,
    "nvae_step": nvae_step,
    "sampling": sampling,
}
WITHOUT_ENERGY = ("nvae_step",)
"""Workloads of experiments without an energy; here `plain` and `fast` are the same."""


def per_call(name: str, setup: Setup) -> int:
    """Steps or iterations of one call of a workload, by which its time is divided."""
    small = setup.batch * math.prod(setup.shape) <= SMALL  # then iterations compute positives and negatives together
    return {"langevin_step": LANGEVIN_STEPS, "ebm_iteration": AHEAD if small else 1}.get(name, 1)


def implementations(name: str, device: torch.device) -> list[Implementation]:
    """Implementations of a workload; training of the NVAE also has bfloat16 by autocast `as published`."""
    found = list(CPU_IMPLEMENTATIONS if device.type == "cpu" else GPU_IMPLEMENTATIONS)
    if name in WITHOUT_ENERGY:
        found = [way for way in found if way.kind != "plain"]
        found += [Implementation("as published", "bfloat16")] * (device.type == "cuda")
    return found
