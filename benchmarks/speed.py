"""How fast chains and trainings are: the package's way against its plain modules and against the arithmetic as published.

    python benchmarks/speed.py                                   # CIFAR-10's architecture, reduced; minutes on two cores
    python benchmarks/speed.py digits --json speed.json          # the networks of an experiment

Each way has a process of its own, the fast one with the memory settings of the stages. They take turns in every round, so that
what else the machine does falls on all of them; figures are medians over the rounds. Iterations of the energy's training and
sampling are timed with fewer chain steps than in earnest, and say so.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import multiprocessing
import multiprocessing.pool
import os
import platform
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from as_published import Unprepared, as_published
from timing import Traffic, Work, interleaved, machine, resident, seconds
from torch import Tensor, nn

from vaebm.config import DATASETS, ChainSettings, EBMSettings, EBMTrainingSettings, EnergyNetworkSettings, NVAENetworkSettings, NVAETrainingSettings, UserError
from vaebm.describe import EXPERIMENTS, measured, quantity
from vaebm.ebm.network import EnergyNetwork
from vaebm.ebm.trainer import Trainer as EBMTrainer
from vaebm.fast import move
from vaebm.files import write_json
from vaebm.memory import keep_freed_memory
from vaebm.model import VAEBM, sample_noise
from vaebm.noise import NoiseSource
from vaebm.nvae.model import NVAE
from vaebm.nvae.train import Trainer as NVAETrainer
from vaebm.runtime import place, seeded
from vaebm.settings import read_experiment

ROUNDS = 7
"""After one that is not counted."""
CHAIN_STEPS = 4
"""Of the chains within iterations and sampling."""
WAYS = ("as published", "plain", "fast")


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
    return Setup("CIFAR-10, reduced", network, NVAETrainingSettings(epochs=400, batch=batch), ebm, (3, 32, 32), batch)


def of_experiment(name: str, batch: int | None) -> Setup:
    """The networks and settings of an experiment, a name or a file."""
    path = Path(name)
    experiment = read_experiment(path if path.suffix else EXPERIMENTS / f"{name}.yaml")
    facts, ebm = DATASETS[experiment.data.dataset], experiment.ebm
    batch = batch or (ebm.training.batch if ebm is not None else experiment.nvae.training.micro_batch or experiment.nvae.training.batch)
    training = experiment.nvae.training.model_copy(update={"batch": batch, "micro_batch": None})
    if ebm is not None:
        chain, update = ebm.chain.model_copy(update={"steps": CHAIN_STEPS}), ebm.training.model_copy(update={"batch": batch})
        ebm = ebm.model_copy(update={"chain": chain, "training": update, "replay": None})
    return Setup(name, experiment.nvae.network, training, ebm, (facts.channels, facts.side, facts.side), batch)


def build(setup: Setup, device: torch.device) -> tuple[NVAE, EnergyNetwork | None]:
    """Random networks, as the stages have them."""
    with seeded(0):
        nvae = NVAE(setup.network, setup.shape)
        energy = None if setup.ebm is None else EnergyNetwork(setup.ebm.network, setup.shape[0])
    if energy is not None:
        energy.initialize(torch.rand(16, *setup.shape, generator=torch.Generator().manual_seed(0)))
    return place(nvae.eval(), device), None if energy is None else place(energy, device)


def frozen(nvae: NVAE, energy: EnergyNetwork, way: str, potential: str) -> VAEBM:
    """The pair, with copies of the networks where they compute as published."""
    if way == "as published":
        nvae, energy = as_published(nvae), as_published(energy)
    kind = VAEBM if way == "fast" else Unprepared
    return kind(nvae.requires_grad_(False), energy.requires_grad_(False), potential)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------------- the works
def langevin_step(setup: Setup, device: torch.device, way: str) -> Work:
    """One step of a chain; what is prepared once a chain is not in it."""
    nvae, energy = build(setup, device)
    assert energy is not None and setup.ebm is not None
    model, noise = frozen(nvae, energy, way, setup.ebm.potential), NoiseSource(0, "speed", range(setup.batch))
    eps_z, eps_x = model.noise_like_prior(noise)
    return functools.partial(move, model.chain_potential(), [*eps_z, eps_x], steps=1, step_size=setup.ebm.chain.step_size, noise=noise)


def ebm_iteration(setup: Setup, device: torch.device, way: str) -> Work:
    """One update of the energy with its chains."""
    nvae, energy = build(setup, device)
    assert energy is not None and setup.ebm is not None
    if way == "as published":
        nvae, energy = as_published(nvae), as_published(energy)
    trainer = EBMTrainer(nvae.requires_grad_(False), energy, setup.ebm, seed=0)
    if way != "fast":
        trainer.vaebm = Unprepared(nvae, energy, setup.ebm.potential)
    images = grey_levels(setup, device)

    def work() -> None:
        trainer.gradients(images, 0)
        trainer.update(setup.ebm.training.learning_rate if setup.ebm is not None else 0.0)

    return work


def nvae_step(setup: Setup, device: torch.device, way: str) -> Work:
    """One update of the NVAE, regularisers included."""
    nvae, _ = build(setup, device)
    trainer = NVAETrainer((as_published(nvae) if way == "as published" else nvae).train(), setup.training, 1000, seed=0)
    return functools.partial(trainer.step, grey_levels(setup, device), 0, 1e-4, penalise=True)


def sampling(setup: Setup, device: torch.device, way: str) -> Work:
    """Images from noise, through chain and decoder."""
    nvae, energy = build(setup, device)
    assert energy is not None and setup.ebm is not None
    model = frozen(nvae, energy, way, setup.ebm.potential)
    return functools.partial(model.images, sample_noise(0, range(setup.batch)), steps=CHAIN_STEPS, step_size=setup.ebm.chain.step_size)


def grey_levels(setup: Setup, device: torch.device) -> Tensor:
    """A batch of random images, uint8 as the stages keep them."""
    return torch.randint(0, 256, (setup.batch, *setup.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).to(device)


WORKS: dict[str, Callable[[Setup, torch.device, str], Work]] = {
    "langevin_step": langevin_step,
    "ebm_iteration": ebm_iteration,
    "nvae_step": nvae_step,
    "sampling": sampling,
}
CHAINLESS = ("nvae_step",)
"""What an experiment without an energy has; here the plain modules are the package's way."""


# ------------------------------------------------------------------------------------------------------------- measurements
def worker(name: str, setup: Setup, device: torch.device, way: str) -> multiprocessing.pool.Pool:
    """A process in which one work waits for its turns."""
    return multiprocessing.get_context("spawn").Pool(1, _begin, (name, setup, device, way, torch.get_num_threads()))


_work: Work
"""What this process does at its turns; set where it begins."""


def _begin(name: str, setup: Setup, device: torch.device, way: str, threads: int) -> None:
    global _work
    torch.set_num_threads(threads)
    if way == "fast":
        keep_freed_memory()
    _work = WORKS[name](setup, device, way)


def _turn(device: torch.device) -> float:
    return seconds(_work, device)


def _count() -> tuple[int, int]:
    """FLOP, and bytes read and written; in one thread, since what chains do in threads of their own is not seen from here."""
    traffic, threads = Traffic(), torch.get_num_threads()
    torch.set_num_threads(1)
    with traffic, measured(nn.Identity()) as counted:
        _work()
    torch.set_num_threads(threads)
    return counted().flop, traffic.bytes


def peak_memory(setup: Setup, device: torch.device, way: str) -> int:
    """Bytes that a process takes for three steps of a chain beyond what it had with the networks in place; in a process of its own."""
    with worker("langevin_step", setup, device, way) as pool:
        return pool.apply(_peak, (device,))


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    for _ in range(3):
        _work()
    after = torch.cuda.max_memory_allocated() if device.type == "cuda" else resident("VmHWM")
    return after - before


def compare(name: str, setup: Setup, device: torch.device, rounds: int) -> dict[str, Any]:
    """Time one work in all its ways, and count what it does."""
    ways = [way for way in WAYS if not (name in CHAINLESS and way == "plain")]
    with contextlib.ExitStack() as stack:
        workers = {way: stack.enter_context(worker(name, setup, device, way)) for way in ways}
        times = interleaved({way: functools.partial(pool.apply, _turn, (device,)) for way, pool in workers.items()}, rounds, name)
        counts = {way: pool.apply(_count) for way, pool in workers.items()}
    medians = {way: statistics.median(found) for way, found in times.items()}
    found: dict[str, Any] = {"ratio": medians["fast"] / medians["as published"]}
    paired = [fast / published for fast, published in zip(times["fast"], times["as published"], strict=True)]
    found["ratio_quartiles"] = np.quantile(paired, [0.25, 0.75]).tolist()
    for way, (flop, moved) in counts.items():
        found[way] = {
            "seconds": medians[way],
            "quartiles": np.quantile(times[way], [0.25, 0.75]).tolist(),
            "flop": flop,
            "bytes": moved,
            "flop_per_second": flop / medians[way],
            "bytes_per_second": moved / medians[way],
        }
    return found


def show(results: dict[str, Any]) -> str:
    """The figures as text."""
    best = results["machine"]
    lines = [
        f"{results['setup']}, batch {results['batch']}, {results['device']}, {results['threads']} thread(s), medians of {results['rounds']} rounds",
        f"the machine: convolution {quantity(best['convolution'], 'FLOP/s')}, product {quantity(best['product'], 'FLOP/s')}, "
        f"copy {quantity(best['copy'], 'B/s')}",
        "",
        f"{'':<16}{'':<14}{'ms':>9}{'quartiles':>19}{'ratio':>8}{'FLOP/s':>16}{'B/s':>14}",
    ]
    for name, found in results["ratios"].items():
        for way in (way for way in WAYS if way in found):
            one = found[way]
            low, high = (f"{1e3 * value:.0f}" for value in one["quartiles"])
            ratio = one["seconds"] / found["as published"]["seconds"]
            lines.append(
                f"{name:<16}{way:<14}{1e3 * one['seconds']:>9.0f}{f'{low} to {high}':>19}{ratio:>8.2f}"
                f"{quantity(one['flop_per_second'], 'FLOP/s'):>16}{quantity(one['bytes_per_second'], 'B/s'):>14}"
            )
            name = ""
    if memory := results.get("peak_memory"):
        shown = ", ".join(f"{way} {quantity(memory[way], 'B')}" for way in WAYS)
        lines += ["", f"peak memory of the chain: {shown}; fast over as published {memory['ratio']:.2f}"]
    lines += ["", f"ebm_iteration and sampling with {CHAIN_STEPS} chain steps; bytes: read and written by all operations, from whichever memory"]
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", help="a name in config/experiments, or a file; default: CIFAR-10's architecture, reduced")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--batch", type=int, help="chains, and images of a training step; default: the experiment's")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default: {ROUNDS}")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    try:
        setup = of_experiment(arguments.experiment, arguments.batch) if arguments.experiment else reduced(arguments.batch or 32)
    except UserError as error:
        sys.exit(str(error))
    results: dict[str, Any] = {
        "setup": setup.name,
        "batch": setup.batch,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rounds": arguments.rounds,
        "chain_steps": {"ebm_iteration": CHAIN_STEPS, "sampling": CHAIN_STEPS},
        "load": os.getloadavg(),
        "machine": machine(device, arguments.rounds),
        "ratios": {},
    }
    for name in WORKS if setup.ebm is not None else CHAINLESS:
        results["ratios"][name] = compare(name, setup, device, arguments.rounds)
    if setup.ebm is not None:
        memory = {way: peak_memory(setup, device, way) for way in WAYS}
        results["peak_memory"] = memory | {"ratio": memory["fast"] / memory["as published"]}
    print(show(results))
    if arguments.json is not None:
        write_json(arguments.json, json.loads(json.dumps(results)))


if __name__ == "__main__":
    main()
