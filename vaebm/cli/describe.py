"""Estimates parameters, work, memory and time of an experiment, without data and training.

The networks are on torch's meta device: tensors have shapes and no values.
"""

import math
from itertools import groupby, zip_longest
from pathlib import Path

import torch
from torch import Tensor, nn

from vaebm.cli.work import Work, measured, quantity
from vaebm.config import DatasetFacts, Experiment
from vaebm.config.yaml_files import read_experiment
from vaebm.ebm.contrastive_divergence import contrastive_divergence
from vaebm.energy.network import build_energy
from vaebm.fast import PreparedEnergy, PreparedPotential
from vaebm.model import VAEBM
from vaebm.nvae.cells import set_recompute
from vaebm.nvae.model import NVAE
from vaebm.nvae.objective import nelbo
from vaebm.records.metrics import number
from vaebm.system.errors import UserError

EXPERIMENTS = Path("config/experiments")
"""Folder of experiments given by name."""

SINGLE = 4
"""Bytes of a number in single precision."""

MOMENTS = 2
"""Running averages that Adam and Adamax keep of every parameter."""


def build(experiment: Experiment) -> tuple[NVAE, nn.Module | None]:
    """Build the networks on the meta device; no energy without a stage `ebm`."""
    facts = experiment.data.facts
    with torch.device("meta"):
        nvae = NVAE(experiment.nvae.network, (facts.channels, facts.side, facts.side))
        return nvae, None if experiment.ebm is None else build_energy(experiment.ebm.network, facts.channels)


def parameters(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def blank(nvae: NVAE, batch: int) -> tuple[Tensor, list[Tensor]]:
    """Images and latent noise for `nvae`, on its device, without values."""
    x, *eps = (torch.empty(batch, *shape, device=nvae.device) for shape in (nvae.shape, *nvae.latent_shapes))
    return x, eps


def nvae_training(nvae: NVAE, batch: int) -> tuple[Work, Work]:
    """Work of the loss of `batch` images, forward, and forward and backward; without regularisers and optimiser."""
    x, eps = blank(nvae.train(), batch)
    with measured(nvae) as work:
        loss = nelbo(nvae(x, eps=eps), x).loss
        forward = work()
        loss.backward()
    return forward, work()


def decoding(nvae: NVAE, batch: int) -> Work:
    """Work of decoding `batch` images."""
    with measured(nvae) as work, torch.no_grad():
        nvae.eval().decode(blank(nvae, batch)[1])
    return work()


def reconstruction(nvae: NVAE, batch: int) -> Work:
    """Work of encoding and decoding `batch` images, for matched positives."""
    x, eps = blank(nvae, batch)
    with measured(nvae) as work, torch.no_grad():
        nvae.eval()(x, eps=eps)
    return work()


def langevin_step(vaebm: VAEBM, chains: int) -> Work:
    """Work of one step of `chains` chains: potential and gradient through the prepared networks (`fast`)."""
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
    """Bytes of the prepared networks' additional weights."""
    potential = vaebm.chain_potential()
    assert isinstance(potential, PreparedPotential)
    energy = potential.energy.tensors() if isinstance(potential.energy, PreparedEnergy) else ()  # a plug-in's
    return sum(tensor.nbytes for tensor in (*potential.decoder.tensors(), *energy))


def energy_update(energy: nn.Module, x: Tensor) -> tuple[Work, Work]:
    """Work of the energies of images `x`, and of an update with as many images and chains."""
    energy.requires_grad_(True)
    with measured(energy) as work, torch.no_grad():
        energy(x)
    with measured(energy) as update:
        contrastive_divergence(energy, x, x.clone()).loss.backward()
    return work(), update()


def duration(seconds: float) -> str:
    """Format a time in a readable unit."""
    for unit, length, least in (("days", 86400.0, 5), ("h", 3600.0, 2), ("min", 60.0, 2)):
        if seconds >= least * length:
            return f"{number(seconds / length, 3)} {unit}"
    return f"{number(seconds, 3)} s" if seconds >= 1 else "below 1 s"


DescriptionRow = tuple[str, str, str]
"""What, how much, a remark."""


def _flop(what: str, flop: float, remark: str) -> DescriptionRow:
    return what, quantity(flop, "FLOP"), remark


def _bytes(what: str, size: float, remark: str = "") -> DescriptionRow:
    return what, quantity(size, "B"), remark


def _time(what: str, flop: float, throughput: float, remark: str) -> DescriptionRow:
    return what, duration(flop / (1e12 * throughput)), f"{remark}, {quantity(flop, 'FLOP')}"


def _nvae_rows(nvae: NVAE, experiment: Experiment, decoded: int, throughput: float) -> dict[str, list[DescriptionRow]]:
    """The NVAE's rows per section; `decoded`: FLOP of a decoded image."""
    training, every = experiment.nvae.training, parameters(nvae)
    decoder = sum(parameter.numel() for parameter in nvae.decoder_parameters())
    share = -(-(training.micro_batch or training.batch) // max(experiment.resources.nvae.gpu, 1))
    set_recompute(nvae, training.recompute)
    forward, part = nvae_training(nvae, share)
    set_recompute(nvae, False)  # chains never do
    step = training.batch * part.flop // share
    train = experiment.data.facts.train
    steps = (train or training.batch) // training.batch * training.epochs
    count = f"{steps:,} steps" if train else f"for every {training.batch} images to train on"
    length = f"{training.epochs} epochs, {count}"
    weights = every * SINGLE
    return {
        "Parameters": [
            ("NVAE, encoder side", f"{every - decoder:,}", ""),
            ("NVAE, decoder side", f"{decoder:,}", "with the learned constant"),
            ("NVAE", f"{every:,}", ""),
        ],
        "Work": [
            _flop("NVAE, forward", forward.flop / share, "an image"),
            _flop("NVAE, decoder alone", decoded, "an image"),
            _flop("NVAE training step", step, f"{training.batch} images, forward and backward, without regularisers"),
        ],
        "Memory": [
            _bytes("NVAE training", (2 + MOMENTS) * weights + part.activations, f"{share} images at once"),
            _bytes("  weights", weights),
            _bytes("  gradients", weights),
            _bytes("  optimiser", MOMENTS * weights),
            _bytes("  activations", part.activations),
        ],
        "Time": [_time("NVAE training", step * steps, throughput, length)],
    }


def _ebm_rows(vaebm: VAEBM, experiment: Experiment, decoded: int, throughput: float) -> dict[str, list[DescriptionRow]]:
    """The rows of energy and chain per section; `decoded`: FLOP of a decoded image."""
    assert vaebm.energy is not None and experiment.ebm is not None
    training, steps, batch = experiment.ebm.training, experiment.ebm.chain.steps, experiment.ebm.training.batch
    share = -(-batch // max(experiment.resources.ebm.gpu, 1))
    energy, update = energy_update(vaebm.energy, blank(vaebm.nvae, share)[0])
    step = langevin_step(vaebm, share)
    a_step, an_update = step.flop // share, update.flop // share
    match = reconstruction(vaebm.nvae, 1).flop if experiment.ebm.positives == "matched" else 0
    both = parameters(vaebm.nvae) + parameters(vaebm.energy)
    weights = both * SINGLE + (prepared := prepared_weights(vaebm))
    # gradients, optimiser, activations
    update_memory = (1 + MOMENTS) * SINGLE * parameters(vaebm.energy) + update.activations
    total = training.iterations * batch * (steps * a_step + decoded + match + an_update)
    length = f"{training.iterations:,} updates, {steps} Langevin steps before each"
    rows = {
        "Parameters": [("energy", f"{parameters(vaebm.energy):,}", ""), ("both", f"{both:,}", "")],
        "Work": [
            _flop("energy", energy.flop / share, "an image"),
            _flop("Langevin step", batch * a_step, f"{batch} chains"),
            _flop("energy update", batch * an_update, f"{batch} images and as many chains, forward and backward"),
        ],
        "Memory": [
            _bytes("Langevin step", weights + step.activations, f"{share} chains at once"),
            _bytes("  weights of both", both * SINGLE),
            _bytes("  prepared weights", prepared, "normalised, folded, some of them turned for the gradient"),
            _bytes("  activations", step.activations),
            _bytes("energy update", update_memory, "on a GPU beside the Langevin step, whose record stays"),
        ],
        "Time": [_time("energy training", total, throughput, length)],
    }
    if experiment.samples is not None:
        count, steps, chains = experiment.samples.count, experiment.samples.chain.steps, experiment.samples.batch
        memory, length = weights + chains * step.activations // share, f"{count:,} images, {steps} Langevin steps each"
        rows["Memory"].append(_bytes("samples", memory, f"{chains} chains at once"))
        rows["Time"].append(_time("samples", count * (steps * a_step + decoded), throughput, length))
    return rows


def _counts(facts: DatasetFacts) -> str:
    if facts.train is None:
        return "as many as the files hold"
    return f"{facts.train:,} to train on, {facts.heldout:,} held out"


def _groups(count: int, shape: tuple[int, ...]) -> str:
    return f"{count} group{'s' if count > 1 else ''} of {'×'.join(map(str, shape))}"


def describe_experiment(path: Path, throughput: float) -> str:
    """Describe an experiment file.

    Args:
        path: the file.
        throughput: sustained throughput of all devices of a stage, TFLOP/s.

    Raises:
        UserError: no experiment there.
    """
    experiment = read_experiment(path)
    facts = experiment.data.facts
    nvae, energy = build(experiment)
    sections = ("data", "nvae", "ebm", "samples", "evaluation")
    stages = [name for name in sections if getattr(experiment, name) is not None]
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
    tables = _nvae_rows(nvae, experiment, decoded, throughput)
    if experiment.ebm is not None:
        more = _ebm_rows(VAEBM(nvae, energy, experiment.ebm.potential), experiment, decoded, throughput)
        tables = {title: rows + more[title] for title, rows in tables.items()}
    remarks = {
        "Work": ": floating-point operations of convolutions and matrix products, a multiply-add is two",
        "Memory": " of each process in single precision, an estimate: without what the libraries take",
        "Time": f" if all devices of a stage together sustain {throughput:g} TFLOP/s",
    }
    for title, rows in tables.items():
        lines += ["", f"{title}{remarks.get(title, '')}"]
        lines += [f"  {what:<20}{value:>14}  {remark}".rstrip() for what, value, remark in rows]
    return "\n".join(lines)


def run(experiment: Path, throughput: float) -> None:
    """Print the description of an experiment.

    Args:
        experiment: a name in config/experiments, or an experiment file.
        throughput: sustained throughput of all devices of a stage, TFLOP/s.

    Raises:
        UserError: no such experiment, or a throughput that is none.
    """
    if not throughput > 0:
        raise UserError(f"--tflops: expected a number above 0, found {throughput:g}")
    named = len(experiment.parts) == 1 and not experiment.suffix
    print(describe_experiment(EXPERIMENTS / f"{experiment}.yaml" if named else experiment, throughput))
