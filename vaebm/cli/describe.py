"""What an experiment takes in parameters, work, memory and time, told without its data and without training.

The networks stand on torch's meta device, where tensors have shapes and no values: the largest take seconds.
"""

from __future__ import annotations

import math
from itertools import groupby, zip_longest
from pathlib import Path

import torch
from torch import Tensor, nn

from vaebm.cli.work import Work, measured, quantity
from vaebm.config import DatasetFacts, Experiment
from vaebm.config.yaml_files import read_experiment
from vaebm.ebm.contrastive_divergence import contrastive_divergence
from vaebm.energy.network import EnergyNetwork
from vaebm.fast import Energy, PreparedPotential
from vaebm.model import VAEBM
from vaebm.nvae.cells import set_recompute
from vaebm.nvae.model import NVAE
from vaebm.nvae.objective import nelbo
from vaebm.records.metrics import number
from vaebm.system.errors import UserError

EXPERIMENTS = Path("config/experiments")
"""Where an experiment stands that is given by its name alone."""

SINGLE = 4
"""Bytes of a number in single precision."""

MOMENTS = 2
"""Running averages that Adam and Adamax keep of every parameter."""


def build(experiment: Experiment) -> tuple[NVAE, EnergyNetwork | None]:
    """The experiment's networks on the meta device; None where it has no stage `ebm`."""
    facts = experiment.data.facts
    with torch.device("meta"):
        nvae = NVAE(experiment.nvae.network, (facts.channels, facts.side, facts.side))
        return nvae, None if experiment.ebm is None else EnergyNetwork(experiment.ebm.network, facts.channels)


def parameters(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def blank(nvae: NVAE, batch: int) -> tuple[Tensor, list[Tensor]]:
    """Images and latent noise of the shapes that `nvae` takes, on its device, without values."""
    x, *eps = (
        torch.empty(batch, *shape, device=nvae.prior_constant.device) for shape in (nvae.shape, *nvae.latent_shapes)
    )
    return x, eps


def nvae_training(nvae: NVAE, batch: int) -> tuple[Work, Work]:
    """Forward pass of the loss of `batch` images, and forward and backward pass together; without regularisers and optimiser."""
    x, eps = blank(nvae.train(), batch)
    with measured(nvae) as work:
        loss = nelbo(nvae(x, eps=eps), x).loss
        forward = work()
        loss.backward()
    return forward, work()


def decoding(nvae: NVAE, batch: int) -> Work:
    """`batch` images made of noise."""
    with measured(nvae) as work, torch.no_grad():
        nvae.eval().decode(blank(nvae, batch)[1])
    return work()


def reconstruction(nvae: NVAE, batch: int) -> Work:
    """`batch` images encoded and decoded, as matched positives take it."""
    x, eps = blank(nvae, batch)
    with measured(nvae) as work, torch.no_grad():
        nvae.eval()(x, eps=eps)
    return work()


def langevin_step(vaebm: VAEBM, chains: int) -> Work:
    """One step of `chains` chains: the potential and its gradient in the noise, through the prepared networks (`fast`), as the stages take it."""
    assert vaebm.energy is not None
    vaebm.nvae.requires_grad_(False).eval()
    vaebm.energy.requires_grad_(False)
    potential = vaebm.chain_potential()
    eps_x, eps_z = blank(vaebm.nvae, chains)
    eps = [part.requires_grad_() for part in (*eps_z, eps_x)]
    with measured(vaebm.nvae, vaebm.energy) as work:
        torch.autograd.grad(potential(eps).sum(), eps)
    return work()


def prepared_weights(vaebm: VAEBM) -> int:
    """Bytes of weights that the prepared networks have beside the modules', which are in evaluation mode."""
    potential = vaebm.chain_potential()
    assert isinstance(potential, PreparedPotential) and isinstance(potential.energy, Energy)
    return sum(tensor.nbytes for network in (potential.decoder, potential.energy) for tensor in network.tensors())


def energy_update(energy: EnergyNetwork, x: Tensor) -> tuple[Work, Work]:
    """The energies of images `x`, and the loss of as many images and chains with its backward pass."""
    energy.requires_grad_(True)
    with measured(energy) as work, torch.no_grad():
        energy(x)
    with measured(energy) as update:
        contrastive_divergence(energy, x, x.clone()).loss.backward()
    return work(), update()


def duration(seconds: float) -> str:
    """A time in the unit that it is read in best."""
    for unit, length, least in (("days", 86400.0, 5), ("h", 3600.0, 2), ("min", 60.0, 2)):
        if seconds >= least * length:
            return f"{number(seconds / length, 3)} {unit}"
    return f"{number(seconds, 3)} s" if seconds >= 1 else "below 1 s"


Row = tuple[str, str, str]
"""What, how much, a remark."""


def _time(what: str, flop: float, throughput: float, remark: str) -> Row:
    return what, duration(flop / (1e12 * throughput)), f"{remark}, {quantity(flop, 'FLOP')}"


def _nvae_rows(nvae: NVAE, experiment: Experiment, decoded: int, throughput: float) -> dict[str, list[Row]]:
    """The NVAE's rows of each section; `decoded`: FLOP of a decoded image."""
    training, every = experiment.nvae.training, parameters(nvae)
    decoder = sum(parameter.numel() for parameter in nvae.decoder_parameters())
    share = -(-(training.micro_batch or training.batch) // max(experiment.resources.nvae.gpu, 1))
    set_recompute(nvae, training.recompute)
    forward, part = nvae_training(nvae, share)
    set_recompute(nvae, False)  # chains never do
    step = training.batch * part.flop // share
    train = experiment.data.facts.train
    steps = (train or training.batch) // training.batch * training.epochs
    length = f"{training.epochs} epochs, " + (
        f"{steps:,} steps" if train else f"for every {training.batch} images to train on"
    )
    weights = every * SINGLE
    return {
        "Parameters": [
            ("NVAE, encoder side", f"{every - decoder:,}", ""),
            ("NVAE, decoder side", f"{decoder:,}", "with the learned constant"),
            ("NVAE", f"{every:,}", ""),
        ],
        "Work": [
            ("NVAE, forward", quantity(forward.flop / share, "FLOP"), "an image"),
            ("NVAE, decoder alone", quantity(decoded, "FLOP"), "an image"),
            (
                "NVAE training step",
                quantity(step, "FLOP"),
                f"{training.batch} images, forward and backward, without regularisers",
            ),
        ],
        "Memory": [
            ("NVAE training", quantity((2 + MOMENTS) * weights + part.activations, "B"), f"{share} images at once"),
            ("  weights", quantity(weights, "B"), ""),
            ("  gradients", quantity(weights, "B"), ""),
            ("  optimiser", quantity(MOMENTS * weights, "B"), ""),
            ("  activations", quantity(part.activations, "B"), ""),
        ],
        "Time": [_time("NVAE training", step * steps, throughput, length)],
    }


def _ebm_rows(vaebm: VAEBM, experiment: Experiment, decoded: int, throughput: float) -> dict[str, list[Row]]:
    """The rows of energy and chain in each section; `decoded`: FLOP of a decoded image."""
    assert isinstance(vaebm.energy, EnergyNetwork) and experiment.ebm is not None
    training, steps, batch = experiment.ebm.training, experiment.ebm.chain.steps, experiment.ebm.training.batch
    share = -(-batch // max(experiment.resources.ebm.gpu, 1))
    energy, update = energy_update(vaebm.energy, blank(vaebm.nvae, share)[0])
    step = langevin_step(vaebm, share)
    a_step, an_update = step.flop // share, update.flop // share
    match = reconstruction(vaebm.nvae, 1).flop if experiment.ebm.positives == "matched" else 0
    both = parameters(vaebm.nvae) + parameters(vaebm.energy)
    weights = both * SINGLE + (prepared := prepared_weights(vaebm))
    update_memory = (1 + MOMENTS) * SINGLE * parameters(
        vaebm.energy
    ) + update.activations  # gradients, optimiser, activations
    rows = {
        "Parameters": [("energy", f"{parameters(vaebm.energy):,}", ""), ("both", f"{both:,}", "")],
        "Work": [
            ("energy", quantity(energy.flop / share, "FLOP"), "an image"),
            ("Langevin step", quantity(batch * a_step, "FLOP"), f"{batch} chains"),
            (
                "energy update",
                quantity(batch * an_update, "FLOP"),
                f"{batch} images and as many chains, forward and backward",
            ),
        ],
        "Memory": [
            ("Langevin step", quantity(weights + step.activations, "B"), f"{share} chains at once"),
            ("  weights of both", quantity(both * SINGLE, "B"), ""),
            ("  prepared weights", quantity(prepared, "B"), "normalised, folded, some of them turned for the gradient"),
            ("  activations", quantity(step.activations, "B"), ""),
            ("energy update", quantity(update_memory, "B"), "on a GPU beside the Langevin step, whose record stays"),
        ],
        "Time": [
            _time(
                "energy training",
                training.iterations * batch * (steps * a_step + decoded + match + an_update),
                throughput,
                f"{training.iterations:,} updates, {steps} Langevin steps before each",
            )
        ],
    }
    if experiment.samples is not None:
        count, steps, chains = experiment.samples.count, experiment.samples.chain.steps, experiment.samples.batch
        rows["Memory"].append(
            ("samples", quantity(weights + chains * step.activations // share, "B"), f"{chains} chains at once")
        )
        rows["Time"].append(
            _time(
                "samples",
                count * (steps * a_step + decoded),
                throughput,
                f"{count:,} images, {steps} Langevin steps each",
            )
        )
    return rows


def _counts(facts: DatasetFacts) -> str:
    return (
        "as many as the files hold"
        if facts.train is None
        else f"{facts.train:,} to train on, {facts.heldout:,} held out"
    )


def _groups(count: int, shape: tuple[int, ...]) -> str:
    return f"{count} group{'s' if count > 1 else ''} of {'×'.join(map(str, shape))}"


def describe(path: Path, throughput: float) -> str:
    """The text about an experiment file.

    Args:
        path: the file.
        throughput: what all devices of a stage sustain together, TFLOP/s.

    Raises:
        UserError: no experiment there.
    """
    experiment = read_experiment(path)
    facts = experiment.data.facts
    nvae, energy = build(experiment)
    stages = [
        name for name in ("data", "nvae", "ebm", "samples", "evaluation") if getattr(experiment, name) is not None
    ]
    head = {
        "stages": [", ".join(stages)],
        "models": [", ".join(experiment.models)],
        "missing": experiment.missing
        and [", ".join(experiment.missing), "so Snakemake cannot run it; its stages can be run by hand"],
        "images": [f"{'×'.join(map(str, nvae.shape))}, {experiment.data.prepared}: {_counts(facts)}"],
        "latents": [_groups(len(list(same)), shape) for shape, same in groupby(nvae.latent_shapes)],
    }
    head["latents"].append(f"{sum(math.prod(shape) for shape in nvae.latent_shapes):,} dimensions in all")
    lines = [str(path)]
    for name, texts in head.items():
        lines += [f"{title:<10}{text}" for title, text in zip_longest([name], texts, fillvalue="") if text]

    decoded = decoding(nvae, 1).flop
    sections = _nvae_rows(nvae, experiment, decoded, throughput)
    if experiment.ebm is not None:
        more = _ebm_rows(VAEBM(nvae, energy, experiment.ebm.potential), experiment, decoded, throughput)
        sections = {title: rows + more[title] for title, rows in sections.items()}
    remarks = {
        "Work": ": floating-point operations of convolutions and matrix products, a multiply-add is two",
        "Memory": " of each process in single precision, an estimate: without what the libraries take",
        "Time": f" if all devices of a stage together sustain {throughput:g} TFLOP/s",
    }
    for title, rows in sections.items():
        lines += [
            "",
            f"{title}{remarks.get(title, '')}",
            *(f"  {what:<20}{value:>14}  {remark}".rstrip() for what, value, remark in rows),
        ]
    return "\n".join(lines)


def run(experiment: Path, throughput: float) -> None:
    """Print what an experiment takes.

    Args:
        experiment: a name in config/experiments, or an experiment file.
        throughput: what all devices of a stage sustain together, TFLOP/s.

    Raises:
        UserError: no such experiment, or a throughput that is none.
    """
    if not throughput > 0:
        raise UserError(f"--tflops: expected a number above 0, found {throughput:g}")
    named = len(experiment.parts) == 1 and not experiment.suffix
    print(describe(EXPERIMENTS / f"{experiment}.yaml" if named else experiment, throughput))
