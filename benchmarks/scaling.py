"""Growth of time and memory of sampling with the number of images and of chain steps.

    python benchmarks/scaling.py                          # networks of `digits`, one thread; minutes on a quiet core
    python benchmarks/scaling.py tiny --json scaling.json

Each measurement runs `vaebm samples` with random weights in a new process. It records processor time, which other
processes disturb least, wall-clock time and peak resident memory. A line a + b x is fitted to the processor times; a
is the start-up time. Memory has to be constant in the number of images.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vaebm.cli.describe import EXPERIMENTS
from vaebm.config import DATASETS, ChainSettings, Experiment
from vaebm.config.yaml_files import read_experiment, write_settings
from vaebm.energy.network import EnergyNetwork
from vaebm.nvae.model import NVAE
from vaebm.system.checkpoint import save_model
from vaebm.system.device import seeded
from vaebm.system.errors import UserError
from vaebm.system.files import write_json

COUNTS = (100, 1000, 10000)
STEPS = (5, 10, 20, 40)
IMAGES = 2000
"""Number of images when the steps vary."""


def write_models(experiment: Experiment, folder: Path) -> None:
    """Write models with random weights, as the stages do."""
    facts = DATASETS[experiment.data.dataset]
    shape = (facts.channels, facts.side, facts.side)
    assert experiment.ebm is not None
    with seeded(0):
        nvae, energy = NVAE(experiment.nvae.network, shape), EnergyNetwork(experiment.ebm.network, shape[0])
    energy.initialize(torch.rand(16, *shape, generator=torch.Generator().manual_seed(0)))
    save_model(folder / "nvae.pt", "nvae", experiment.nvae.network.model_dump(), nvae.state_dict(), shape=list(shape))
    more = {"shape": list(shape), "potential": experiment.ebm.potential, "start": experiment.ebm.start}
    save_model(folder / "energy.pt", "energy", experiment.ebm.network.model_dump(), energy.state_dict(), **more)


def measure(experiment: Experiment, folder: Path, count: int, steps: int) -> dict[str, float]:
    """Draw `count` images as one shard, and measure the process."""
    assert experiment.samples is not None
    chain = ChainSettings(steps=steps, step_size=experiment.samples.chain.step_size)
    samples = experiment.samples.model_copy(update={"count": count, "shards": 1, "chain": chain})
    write_settings(experiment.model_copy(update={"samples": samples}), folder, [0])
    settings = min(folder.glob("vaebm*/seed0/samples/samples.yaml"))
    files = {"--nvae": "nvae.pt", "--energy": "energy.pt", "--output": "shard.npy"}
    options = [part for option, name in files.items() for part in (option, str(folder / name))]
    command = [sys.executable, "-m", "vaebm", "samples", str(settings), "--shard", "0", *options]
    began = time.monotonic()
    process = os.spawnve(os.P_NOWAIT, sys.executable, command, os.environ | {"OMP_NUM_THREADS": "1"})
    _, status, usage = os.wait4(process, 0)
    if status:
        sys.exit(f"{' '.join(command)} ended with status {os.waitstatus_to_exitcode(status)}")
    found = {
        "images": count,
        "steps": steps,
        "processor": usage.ru_utime + usage.ru_stime,
        "clock": time.monotonic() - began,
        "peak": 1024 * usage.ru_maxrss,
    }
    text = f"{count} images, {steps} steps: {found['processor']:.1f} s, {found['peak'] / 1e6:.0f} MB"
    print(text, file=sys.stderr, flush=True)
    return found


def fit_line(found: list[dict[str, float]], by: str) -> dict[str, float]:
    """Fit a line to the processor time by the number of images or steps, with its largest relative residual.

    Times are weighted by their inverse, so that the largest does not determine the fit.
    """
    x, y = (np.array([one[name] for one in found]) for name in (by, "processor"))
    slope, intercept = np.polyfit(x, y, 1, w=1 / y)
    return {"constant": intercept, "slope": slope, "residual": float(np.max(np.abs(intercept + slope * x - y) / y))}


def show(results: dict[str, Any]) -> str:
    """The results as text."""
    lines = [
        f"{results['experiment']}, batches of {results['batch']}, one thread, load {results['load'][0]:.1f} before"
    ]
    for by, what in (("images", f"{results['steps']} steps"), ("steps", f"{IMAGES} images")):
        fit = results[f"line_by_{by}"]
        lines += ["", f"{by:>8}{'processor s':>13}{'clock s':>9}{'ms an image and step':>22}{'peak MB':>9}   ({what})"]
        for one in results[f"by_{by}"]:
            each = 1e3 * (one["processor"] - fit["constant"]) / (one["images"] * one["steps"])
            lines.append(
                f"{one[by]:>8}{one['processor']:>13.1f}{one['clock']:>9.1f}{each:>22.3f}{one['peak'] / 1e6:>9.0f}"
            )
        each = f"{1e3 * fit['slope']:.3g} ms for each of the {by}"
        lines.append(f"processor time = {fit['constant']:.1f} s + {each}; at most {fit['residual']:.1%} away from it")
    lines += ["", f"peak memory of {COUNTS[-1]} images over that of {COUNTS[-2]}: {results['memory_ratio']:.3f}"]
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", default="digits", help="a name in config/experiments; default: digits")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    try:
        experiment = read_experiment(EXPERIMENTS / f"{arguments.experiment}.yaml")
    except UserError as error:
        sys.exit(str(error))
    if experiment.ebm is None or experiment.samples is None:
        sys.exit(f"{arguments.experiment}: expected an experiment with the sections ebm and samples")
    steps = experiment.samples.chain.steps
    results: dict[str, Any] = {
        "experiment": arguments.experiment,
        "batch": experiment.samples.batch,
        "steps": steps,
        "load": os.getloadavg(),
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_models(experiment, folder)
        measure(experiment, folder, COUNTS[0], STEPS[0])  # warm-up, not counted: reads the libraries from the disk
        results["by_images"] = [measure(experiment, folder, count, steps) for count in COUNTS]
        results["by_steps"] = [measure(experiment, folder, IMAGES, number) for number in STEPS]
    for by in ("images", "steps"):
        results[f"line_by_{by}"] = fit_line(results[f"by_{by}"], by)
    results["memory_ratio"] = results["by_images"][-1]["peak"] / results["by_images"][-2]["peak"]
    print(show(results))
    if arguments.json is not None:
        write_json(arguments.json, results)


if __name__ == "__main__":
    main()
