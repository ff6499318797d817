"""Distance against gradient evaluations and seconds, for kernels, step sizes and numbers of steps on a frozen model.

    python benchmarks/kernels.py results/digits/vaebm/seed0 --json kernels.json
    python benchmarks/kernels.py RUN --kernels mala underdamped --sizes 0.5 1 2 --set schedule=cosine friction=2

The run needs its models, its evaluation and the experiment's reference. Distances are those of the evaluation's
`quality_along_chain`, from the same noise for every kernel. Seconds are those of a batch of chains without
measurements, the median of three, in proportion to the gradient evaluations.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from timing import seconds

from vaebm import VAEBM
from vaebm.config import EvaluationSettings, LangevinSettings, SamplesSettings
from vaebm.config.evaluation import StepsSettings
from vaebm.config.yaml_files import read_settings, validate
from vaebm.evaluation.extractors import open_extractor
from vaebm.evaluation.quality_along_chain import quality_along_chain
from vaebm.evaluation.reference import read_reference
from vaebm.measures.frechet import Statistics, frechet_distance
from vaebm.model import sample_noise
from vaebm.records.files import read_run
from vaebm.records.metrics import FD
from vaebm.system.errors import UserError
from vaebm.system.files import model_of, write_json

ROUNDS = 3


def chains(base: LangevinSettings, arguments: argparse.Namespace) -> Iterator[LangevinSettings]:
    """The run's test chain with every kernel and multiple of its step size; friction belongs to one kernel."""
    changes: dict[str, Any] = dict(text.split("=", 1) for text in arguments.set)
    changes = {name: value if name == "schedule" else float(value) for name, value in changes.items()}
    for kernel, factor in itertools.product(arguments.kernels, arguments.sizes):
        given = {name: value for name, value in changes.items() if name != "friction" or kernel == "underdamped"}
        content = {"kernel": kernel, "steps": max(arguments.counts), "step_size": factor * base.step_size, **given}
        yield validate(LangevinSettings, content, "--set")


def seconds_per_gradient(model: VAEBM, chain: LangevinSettings, batch: int, seed: int) -> float:
    """Median seconds for a gradient of one chain."""
    noise = sample_noise(seed, range(batch))
    work = functools.partial(model.refine, *model.initial_noise(noise), noise=noise, chain=chain)
    found = [seconds(work, model.device) for _ in range(ROUNDS + 1)]
    return statistics.median(found[1:]) / (batch * chain.gradient_evaluations)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All chains on one run."""
    run, experiment = arguments.run, arguments.run.absolute().parents[1]
    record = read_run(run / "evaluation" / "metrics.json")
    chosen = read_settings(run / "evaluation" / "evaluation.yaml", EvaluationSettings)[1]
    seed, sampling = read_settings(run / "samples" / "samples.yaml", SamplesSettings)
    model, name = VAEBM.from_results(run, arguments.device), chosen.extractor.name
    extractor = open_extractor(
        experiment / "reference" / f"{name}.yaml", model_of(experiment / "classifier"), arguments.device
    )
    reference = read_reference(experiment / "reference" / f"{name}.npz", record.data, extractor.weights)
    steps = StepsSettings(images=arguments.images or chosen.steps.images, counts=sorted({*arguments.counts}))
    rows = []
    for chain in chains(sampling.chain, arguments):
        found = quality_along_chain(
            model, steps, sampling.model_copy(update={"chain": chain}), seed, FD.named(name),
            lambda images: frechet_distance(Statistics.of(extractor.features(images)), reference.train),
        )  # fmt: skip
        each = seconds_per_gradient(model, chain, sampling.batch, seed)
        for count, distance, energy in zip(found.counts, found.distances, found.energy, strict=True):
            gradients = chain.model_copy(update={"steps": count}).gradient_evaluations
            row = {**chain.chosen, "kernel": chain.kernel, "steps": count, "gradients": gradients}
            row |= {"seconds": gradients * each, "distance": distance, "energy": energy}
            rows.append(row)
            shown = "not finite" if distance is None or energy is None else f"{distance:10.4f} {energy:10.4f}"
            text = f"{chain.kernel:12} {chain.step_size:9.4g} {count:5} {gradients:5} {gradients * each:9.2e} {shown}"
            print(text, flush=True)
    facts = {"run": str(run), "metric": FD.named(name), "images": steps.images, "batch": sampling.batch}
    return {**facts, "device": str(model.device), "threads": torch.get_num_threads(), "rows": rows}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="results/EXPERIMENT/VARIANT/seedK")
    parser.add_argument("--kernels", nargs="+", default=["langevin", "mala", "underdamped"])
    parser.add_argument(
        "--sizes", nargs="+", type=float, default=[0.5, 1.0, 2.0], help="in units of the run's step size"
    )
    parser.add_argument("--counts", nargs="+", type=int, default=[0, 5, 10, 20], help="numbers of steps")
    parser.add_argument("--images", type=int, help="default: that of the evaluation's section steps")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of all chains")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    print("kernel       step size steps  grad. s / image   distance     energy")
    try:
        found = measure(arguments)
    except UserError as error:
        sys.exit(str(error))
    if arguments.json:
        write_json(arguments.json, found)


if __name__ == "__main__":
    main()
