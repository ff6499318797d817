"""Where jobs run: on shared files or with a storage, and how they ask a scheduler for GPUs."""

import os
import sys

from vaebm.system.errors import brief

# Without a shared file system, jobs get their files from a storage, and only those that their rule declares. `stored` and `here` are
# further ones, which shared files need not: new inputs would rerun the results of earlier versions.
STORAGE = workflow.storage_settings.default_storage_provider
os.environ.update({"VAEBM_STORAGE": STORAGE} if STORAGE else {})  # trainings say in their log that they cannot be resumed
# A profile for a Slurm that knows GPUs as generic resources alone has `gpu_gres`, gpu or gpu:MODEL. The plugin then sees no `gpu`.
GRES = getattr((workflow.resource_settings.default_resources or {}).get("gpu_gres"), "raw", None)
GPU = "gpu_count" if GRES else "gpu"
THREADS_AND_GPUS = f"--threads {{resources.cpus_per_task}} --gpus {{resources.{GPU}}}"


# One line if the storage does not answer; Snakemake's own message is a trace for each file.
if STORAGE and workflow.is_main_process:
    prefix = workflow.storage_settings.default_storage_prefix
    try:
        workflow.storage_registry.default_storage_provider.object(f"{prefix}/results").exists()
    except Exception as error:  # each plug-in has its own
        sys.exit(f"{prefix}: expected a storage that answers, found {brief(error)}; make it answer, and repeat the command")


def stored(*paths):
    """Inputs next to others, which only a storage needs to know."""
    return [*paths] if STORAGE else []


def here(path):
    """A file or folder of the user as an input. Without a shared file system, its job runs on the machine that has it."""
    return [ancient(local(str(path)))] if STORAGE and path else []
