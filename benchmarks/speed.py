"""Time of chains and trainings: the package against its plain modules and the published arithmetic.

    python benchmarks/speed.py                           # CIFAR-10's architecture, reduced; minutes on two cores
    python benchmarks/speed.py digits --json speed.json  # the networks of an experiment

On a CPU each implementation has its own process; the package's use the memory settings of the stages. All take turns
in every round, so that other load affects all of them. Values are medians over the rounds. On a CPU, training
iterations of the energy and sampling run fewer chain steps, as the output says. On a GPU the precisions of the
settings are compared, too.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import workloads
from timing import Traffic, Workload, interleaved, machine, resident, seconds
from torch import Tensor
from workloads import WITHOUT_ENERGY, WORKLOADS, Implementation, Setup, implementations

from vaebm.chain.langevin import langevin
from vaebm.cli.work import measured, quantity
from vaebm.fast import PreparedPotential
from vaebm.system.allocator import keep_freed_memory
from vaebm.system.device import device_name
from vaebm.system.errors import UserError
from vaebm.system.files import write_json
from vaebm.system.precision import ROUNDED, set_tf32

ROUNDS = 7
"""Rounds after a warm-up round."""

Measure = Callable[[torch.device], Any]
"""Measurement of `_work` on a device."""


@contextlib.contextmanager
def worker(name: str, setup: Setup, device: torch.device, way: Implementation) -> Iterator[Callable[[Measure], Any]]:
    """Function that measures one workload and implementation.

    On a CPU it does so in a process of its own. Starting processes would take most of the time on a GPU.
    """
    begin = (name, setup, device, way, torch.get_num_threads())
    if device.type == "cpu":
        with multiprocessing.get_context("spawn").Pool(1, _begin, begin) as pool:
            yield lambda measure: pool.apply(measure, (device,))
        return
    _begin(*begin)
    work = _work

    def in_this_process(measure: Measure) -> Any:
        global _work
        _work = work
        return measure(device)

    yield in_this_process


_work: Workload
"""Workload of this process, set by `_begin`."""


def _begin(name: str, setup: Setup, device: torch.device, way: Implementation, threads: int) -> None:
    global _work
    torch.set_num_threads(threads)
    if way.kind != "as published":
        keep_freed_memory()
    work = WORKLOADS[name](setup, device, way)

    def run() -> Any:
        set_tf32(way.precision in ROUNDED)
        return work()

    _work = run


def _turn(device: torch.device) -> float:
    return seconds(_work, device)


def _images(device: torch.device) -> Tensor:
    images: Tensor = _work()
    return images.cpu()


def _count(device: torch.device) -> tuple[int, int, int]:
    """FLOP, bytes read and written, and operations, counted in one thread without CUDA graphs."""
    traffic, threads = Traffic(), torch.get_num_threads()
    torch.set_num_threads(1)
    without_graphs = mock.patch.object(PreparedPotential, "replay", langevin)
    with without_graphs, traffic.of_kernels(), traffic, measured() as counted:
        _work()
    torch.set_num_threads(threads)
    return counted().flop + traffic.flop, traffic.bytes, traffic.calls


def _peak(device: torch.device) -> int:
    """Bytes that the work takes in addition to the networks."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    _work()
    after = torch.cuda.max_memory_allocated() if device.type == "cuda" else resident("VmHWM")
    return after - before


def compare(name: str, setup: Setup, device: torch.device, rounds: int) -> dict[str, Any]:
    """Time a workload in all implementations, and count its operations and memory.

    Memory is measured for the chain, on a CPU in new processes, on a GPU for every workload. On a GPU operations are
    counted for the chain only, since counting takes longer than timing.
    """
    begin = {str(way): functools.partial(worker, name, setup, device, way) for way in implementations(name, device)}
    memory: dict[str, int] = {}
    counts: dict[str, tuple[int, int, int]] = {}
    if name == "langevin_step" and device.type == "cpu":
        for way, start in begin.items():
            with start() as call:
                memory[way] = call(_peak)
    with contextlib.ExitStack() as stack:
        workers = {way: stack.enter_context(start()) for way, start in begin.items()}
        if device.type == "cuda":
            memory = {way: call(_peak) for way, call in workers.items()}
        times = interleaved({way: functools.partial(call, _turn) for way, call in workers.items()}, rounds, name)
        if device.type == "cpu" or name == "langevin_step":
            try:
                counts = {way: call(_count) for way, call in workers.items()}
            except torch.OutOfMemoryError:  # without graphs, counting needs more memory than timing
                print(f"{name}: operations are not counted, for want of memory", file=sys.stderr)
        images = {way: call(_images) for way, call in workers.items()} if name == "sampling" else {}
    parts, baseline = workloads.per_call(name, setup), str(workloads.BASELINE)
    found: dict[str, Any] = {}
    for way, taken in times.items():
        median = statistics.median(taken)
        paired = [one / published for one, published in zip(taken, times[baseline], strict=True)]
        found[way] = {
            "seconds": median / parts,
            "quartiles": (np.quantile(taken, [0.25, 0.75]) / parts).tolist(),
            "ratio": median / statistics.median(times[baseline]),
            "ratio_quartiles": np.quantile(paired, [0.25, 0.75]).tolist(),
        }
        if counts:
            *amounts, calls = counts[way]
            found[way]["calls"] = round(calls / parts)
            for what, count in zip(("flop", "bytes"), amounts, strict=True):
                found[way] |= {what: count / parts, f"{what}_per_second": count / median}
        if memory:
            found[way]["peak_memory"] = memory[way]
        if images:
            difference = (images[way] - images[baseline]).abs()
            found[way] |= {
                "images_per_second": setup.batch / median,
                "mean_difference": float(difference.mean()),
                "difference": float(difference.max()),
            }
    return found


def heading(results: dict[str, Any]) -> str:
    """Text above the results."""
    best, steps = results["machine"], results["chain_steps"]
    return "\n".join(
        [
            f"{results['setup']}, batch {results['batch']}, {results['device']}, {results['threads']} thread(s), "
            f"medians of {results['rounds']} rounds",
            f"the machine: convolution {quantity(best['convolution'], 'FLOP/s')}, "
            f"product {quantity(best['product'], 'FLOP/s')}, copy {quantity(best['copy'], 'B/s')}",
            f"langevin_step in a chain of {steps['langevin_step']}, ebm_iteration with {steps['ebm_iteration']} chain "
            f"steps, sampling with {steps['sampling']}",
            "calls: operations, except views; share: FLOP/s over the machine's; bytes: read and written by all "
            "operations; freed memory: on a CPU left to the system where it computes as "
            "published, else kept as in the stages",
            "",
            f"{'':<16}{'':<24}{'ms':>9}{'quartiles':>19}{'ratio':>8}{'calls':>8}{'FLOP/s':>16}{'share':>7}{'B/s':>14}"
            f"{'peak memory':>14}",
        ]
    )


def show(name: str, found: dict[str, Any], best: float) -> str:
    """Results of a workload as text; `best` is the machine's rate, in FLOP/s."""
    lines = []
    for way, one in found.items():
        digits = 0 if one["seconds"] > 1 else 1
        low, high = (f"{1e3 * value:.{digits}f}" for value in one["quartiles"])
        units = {"flop_per_second": "FLOP/s", "bytes_per_second": "B/s", "peak_memory": "B"}
        rates = [quantity(one[key], unit) if key in one else "" for key, unit in units.items()]
        share = f"{one['flop_per_second'] / best:.1%}" if "flop_per_second" in one else ""
        lines.append(
            f"{name:<16}{way:<24}{1e3 * one['seconds']:>9.{digits}f}{f'{low} to {high}':>19}{one['ratio']:>8.2f}"
            f"{one.get('calls', ''):>8}{rates[0]:>16}{share:>7}{rates[1]:>14}{rates[2]:>14}"
        )
        name = ""
    for way, one in found.items():
        if "difference" in one:
            apart = f"{one['mean_difference']:.1e} from as published, at most {one['difference']:.1e}"
            lines.append(f"{'':<16}{way}: {one['images_per_second']:.3g} images a second, {apart}")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "experiment",
        nargs="?",
        help="a name in config/experiments, or a file; default: CIFAR-10's architecture, reduced",
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--batch", type=int, help="chains, and images of a training step; default: the experiment's")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default: {ROUNDS}")
    parser.add_argument(
        "--only", nargs="+", choices=WORKLOADS, help="these works; default: all that the experiment has"
    )
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    try:
        setup = (
            workloads.setup_from_experiment(arguments.experiment, arguments.batch, device)
            if arguments.experiment
            else workloads.reduced_cifar10(arguments.batch or 32)
        )
    except UserError as error:
        sys.exit(str(error))
    chosen = [name for name in arguments.only or WORKLOADS if setup.ebm is not None or name in WITHOUT_ENERGY]
    if not chosen:
        sys.exit(
            f"{setup.name}: expected an experiment with an energy for {' and '.join(arguments.only)}, "
            f"found one without; it has {', '.join(WITHOUT_ENERGY)}"
        )
    set_tf32(False)  # for `machine`
    results: dict[str, Any] = {
        "setup": setup.name,
        "batch": setup.batch,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rounds": arguments.rounds,
        "chain_steps": {
            "langevin_step": workloads.LANGEVIN_STEPS,
            "ebm_iteration": setup.ebm.chain.steps if setup.ebm else 0,
            "sampling": setup.steps,
        },
        "load": os.getloadavg(),
        "machine": machine(device, arguments.rounds),
        "works": {},
    }
    print(heading(results))
    for name in chosen:
        try:
            found = compare(name, setup, device, arguments.rounds)
        except torch.OutOfMemoryError:
            sys.exit(
                f"{name}: expected a batch that fits into the GPU's memory in every way, found {setup.batch}; "
                "choose a smaller --batch"
            )
        results["works"][name] = found
        print(show(name, found, max(results["machine"]["convolution"], results["machine"]["product"])), flush=True)
        if arguments.json is not None:
            write_json(arguments.json, results)


if __name__ == "__main__":
    main()
