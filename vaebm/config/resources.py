"""Section `resources` of an experiment."""

from pydantic import NonNegativeInt, PositiveInt

from vaebm.config.base import Settings


class CPUResources(Settings):
    """Resources of one job of a stage; not in the settings files, so that a change reruns nothing."""

    threads: PositiveInt = 1
    """CPU threads."""
    mem_mb: PositiveInt = 2000
    """Memory in MB."""
    runtime: PositiveInt = 60
    """Time limit in minutes; trainings stop before it and are resumed."""


class GPUResources(CPUResources):
    """Resources of one job of a stage that can use GPUs."""

    gpu: NonNegativeInt = 0
    """Number of GPUs; 0: use the CPU."""


class Resources(Settings):
    """Resources of the jobs of each stage."""

    data: CPUResources = CPUResources()
    classifier: CPUResources = CPUResources()
    nvae: GPUResources = GPUResources()
    prior: GPUResources = GPUResources()
    ebm: GPUResources = GPUResources()
    samples: GPUResources = GPUResources()
    evaluation: GPUResources = GPUResources()
    benchmarks: CPUResources = CPUResources()
