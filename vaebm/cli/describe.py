"""Estimates parameters, work, memory and time of an experiment, without data and training.

The networks are on torch's meta device: tensors have shapes and no values.
"""

import json
import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor, nn

from vaebm.cli.work import Work, measured, quantity
from vaebm.config import Experiment
from vaebm.config.layers import DEFAULTS, source, values
from vaebm.config.yaml_files import read_experiment, read_layers
from vaebm.ebm.contrastive_divergence import contrastive_divergence
from vaebm.energy.network import build_energy
from vaebm.fast import PreparedEnergy, PreparedPotential
from vaebm.model import VAEBM
from vaebm.nvae.cells import set_recompute
from vaebm.nvae.model import NVAE
from vaebm.nvae.objective import nelbo
from vaebm.records.metrics import number
from vaebm.records.templates import render
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


def inference(nvae: NVAE, batch: int) -> tuple[Work, Work]:
    """Work of decoding `batch` images, and of encoding and decoding them, for matched positives."""
    x, eps = blank(nvae.eval(), batch)
    with measured(nvae) as decoding, torch.no_grad():
        nvae.decode(eps)
    with measured(nvae) as reconstruction, torch.no_grad():
        nvae(x, eps=eps)
    return decoding(), reconstruction()


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


def energy_update(energy: nn.Module, x: Tensor, gradient_penalty: float = 0.0) -> tuple[Work, Work]:
    """Work of the energies of images `x`, and of an update with as many images and chains."""
    energy.requires_grad_(True)
    with measured(energy) as work, torch.no_grad():
        energy(x)
    with measured(energy) as update:
        contrastive_divergence(energy, x, x.clone(), gradient_penalty=gradient_penalty).loss.backward()
    return work(), update()


def duration(seconds: float) -> str:
    """Format a time in a readable unit."""
    for unit, length, least in (("days", 86400.0, 5), ("h", 3600.0, 2), ("min", 60.0, 2)):
        if seconds >= least * length:
            return f"{number(seconds / length, 3)} {unit}"
    return f"{number(seconds, 3)} s" if seconds >= 1 else "below 1 s"


Costs = dict[str, float]
"""Numbers of the description: counts of parameters, FLOP, bytes."""


def nvae_costs(nvae: NVAE, experiment: Experiment) -> Costs:
    """Costs of the NVAE and of its training."""
    training, every = experiment.nvae.training, parameters(nvae)
    share = -(-(training.micro_batch or training.batch) // max(experiment.resources.nvae.gpu, 1))
    set_recompute(nvae, training.recompute)
    forward, part = nvae_training(nvae, share)
    set_recompute(nvae, False)  # chains never do
    step = training.batch * part.flop // share
    steps = (experiment.data.facts.train or training.batch) // training.batch * training.epochs
    decoder, weights = sum(parameter.numel() for parameter in nvae.decoder_parameters()), every * SINGLE
    costs: Costs = {"parameters": every, "decoder": decoder, "decoding": inference(nvae, 1)[0].flop}
    costs |= {"share": share, "forward": forward.flop / share, "step": step, "steps": steps, "total": step * steps}
    costs |= {"weights": weights, "optimiser": MOMENTS * weights, "activations": part.activations}
    return costs | {"memory": (2 + MOMENTS) * weights + part.activations}


def ebm_costs(vaebm: VAEBM, experiment: Experiment, decoding: float) -> tuple[Costs, Costs | None]:
    """Costs of the energy's training and of the stage `samples`; `decoding`: FLOP of a decoded image."""
    assert vaebm.energy is not None and experiment.ebm is not None
    training, steps = experiment.ebm.training, experiment.ebm.chain.gradient_evaluations
    batch = training.batch
    share = -(-batch // max(experiment.resources.ebm.gpu, 1))
    energy, update = energy_update(vaebm.energy, blank(vaebm.nvae, share)[0], training.gradient_penalty)
    step = langevin_step(vaebm, share)
    a_step, an_update = step.flop // share, update.flop // share
    match = inference(vaebm.nvae, 1)[1].flop if experiment.ebm.positives == "matched" else 0
    own, prepared = parameters(vaebm.energy), prepared_weights(vaebm)
    both = (parameters(vaebm.nvae) + own) * SINGLE
    # gradients, optimiser, activations
    update_memory = (1 + MOMENTS) * SINGLE * own + update.activations
    total = training.iterations * batch * (steps * a_step + decoding + match + an_update)
    costs: Costs = {"parameters": own, "share": share, "forward": energy.flop / share, "total": total}
    costs |= {"langevin": batch * a_step, "updating": batch * an_update, "update_memory": update_memory}
    costs |= {"weights": both, "prepared": prepared, "activations": step.activations}
    costs |= {"memory": both + prepared + step.activations}
    if (samples := experiment.samples) is None:
        return costs, None
    memory = both + prepared + samples.batch * step.activations // share
    return costs, {"memory": memory, "total": samples.count * (samples.chain.gradient_evaluations * a_step + decoding)}


def describe_experiment(path: Path, throughput: float, changes: Sequence[str] = ()) -> str:
    """Describe an experiment file with `changes` to it, like samples.chain.steps=40.

    Args:
        throughput: sustained throughput of all devices of a stage, TFLOP/s.

    Raises:
        UserError: no experiment there.
    """
    experiment = read_experiment(path, changes)
    network, energy = build(experiment)
    nvae, ebm, samples = nvae_costs(network, experiment), None, None
    if experiment.ebm is not None:
        model = VAEBM(network, energy, "density" if experiment.ebm.potential == "density" else "noise")
        ebm, samples = ebm_costs(model, experiment, nvae["decoding"])
    sections = ("data", "nvae", "prior", "ebm", "samples", "evaluation")
    return render(
        "cli/description.txt.j2",
        path=path,
        experiment=experiment,
        facts=experiment.data.facts,
        stages=[name for name in sections if getattr(experiment, name) is not None],
        shape=network.shape,
        latents=[(shape, len(list(same))) for shape, same in groupby(network.latent_shapes)],
        dimensions=sum(map(math.prod, network.latent_shapes)),
        nvae=nvae,
        ebm=ebm,
        samples=samples,
        throughput=throughput,
        flop=lambda value: quantity(value, "FLOP"),
        size=lambda value: quantity(value, "B"),
        time=lambda flop: duration(flop / (1e12 * throughput)),
    ).rstrip("\n")


def _file(experiment: Path) -> Path:
    """The file of an experiment, which is a name in config/experiments or a file."""
    return EXPERIMENTS / f"{experiment}.yaml" if len(experiment.parts) == 1 and not experiment.suffix else experiment


def print_settings(experiment: Path, changes: Sequence[str]) -> None:
    """Print every setting of an experiment, its value as JSON, and the file that the value is from."""
    path = _file(experiment)
    layers = read_layers(path, changes)
    for key, value in values(read_experiment(path, changes)):
        text = json.dumps(value, default=lambda part: part.model_dump(exclude_none=True))
        print(f"{key:<40} {text:<24} {source(layers, key, DEFAULTS)}")


def run(experiment: Path, throughput: float, changes: Sequence[str] = ()) -> None:
    """Print the description of an experiment, a name in config/experiments or a file.

    Raises:
        UserError: no such experiment, or a throughput that is none.
    """
    if not throughput > 0:
        raise UserError(f"--tflops: expected a number above 0, found {throughput:g}")
    print(describe_experiment(_file(experiment), throughput, changes))
