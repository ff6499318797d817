"""What a cluster puts into the environment of its jobs is not taken for torchrun's."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from vaebm.config.yaml_files import read_experiment
from vaebm.data import prepare
from vaebm.ebm import wgan
from vaebm.nvae import train as nvae
from vaebm.system import device, gpu_lease
from vaebm.system.device import deadline, setup_device
from vaebm.system.errors import UserError
from vaebm.system.precision import set_precision
from vaebm.training.loop import Limits

SRUN = {
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "PMI_RANK": "3",
    "PMI_SIZE": "4",
    "LOCAL_RANK": "3",
}


def test_a_number_of_processes_without_torchrun_starts_none(tmp_path: Path) -> None:
    """A job whose shell sets WORLD_SIZE, as for other programs, is one process, which reaches its settings file."""
    command = [
        sys.executable,
        "-m",
        "vaebm",
        "nvae",
        "nowhere.yaml",
        "--data",
        "manifest.json",
        "--model",
        "model.pt",
        "--log",
        str(tmp_path / "log"),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "RANK"} | SRUN | {"WORLD_SIZE": "4"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "nowhere.yaml" in line and "expected" in line
    assert (tmp_path / "log").read_text() == done.stderr


def test_a_lone_process_takes_the_first_gpu_that_it_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever number it has among those of its job."""
    for name, value in (SRUN | {"CUDA_VISIBLE_DEVICES": "2"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
    assert setup_device(threads=1, gpus=1) == torch.device("cuda", 0)


def test_waiting_for_a_gpu_is_no_part_of_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the second of two trainings on one GPU would stop as soon as it has it."""
    monkeypatch.setattr(device, "_waited", 0.0)
    before = deadline(10.0)
    monkeypatch.setattr(gpu_lease, "reserve_gpus", lambda count: time.sleep(0.3))
    setup_device(threads=1, gpus=1)
    # both count from the start of this process, to the clock ticks of /proc
    assert deadline(10.0) - before == pytest.approx(0.3, abs=0.1)


def test_a_gpu_without_bfloat16_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line with the key; other precisions do not ask, and a CPU has it."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(UserError, match="samples.yaml: samples.precision: this GPU has no bfloat16; choose float32"):
        set_precision("bfloat16", torch.device("cuda"), "samples.yaml: samples.precision")
    set_precision("bfloat16", torch.device("cpu"), "")
    assert torch.backends.cudnn.allow_tf32
    set_precision("float32", torch.device("cuda"), "")
    assert not torch.backends.cudnn.allow_tf32


def test_an_apple_gpu_serves_the_stages_without_double_precision(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a GPU is asked for; it is not reserved, since the locks are for CUDA."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(gpu_lease, "reserve_gpus", lambda count: pytest.fail("reserved"))
    assert setup_device(threads=1, gpus=1, mps=True) == torch.device("mps")
    assert setup_device(threads=1, gpus=0, mps=True) == torch.device("cpu")
    assert setup_device(threads=1, gpus=1) == torch.device("cpu")
    line = "an Apple GPU has no double precision, which this stage needs: running on the CPU\n"
    assert capsys.readouterr().err == line
    with pytest.raises(UserError, match="nvae.training.precision: an Apple GPU has no double precision"):
        set_precision("float64", torch.device("mps"), "nvae.yaml: nvae.training.precision")


class NoDoubles(TorchDispatchMode):
    """Fails where an operation returns a tensor in double precision."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        parts = out if isinstance(out, tuple | list) else [out]
        assert not any(isinstance(one, torch.Tensor) and one.dtype == torch.float64 for one in parts), function
        return out


def test_trainings_on_an_apple_gpu_make_no_tensor_in_double_precision(tmp_path: Path) -> None:
    """The NVAE's and the GAN's, from the first step to the model's file."""
    prepare("digits", tmp_path / "data")
    experiment = read_experiment(Path(__file__).parents[2] / "config/experiments/tiny.yaml").model_dump()
    experiment["nvae"]["training"] |= {"epochs": 1, "warmup_epochs": 0, "batch": 500}
    gan = {"network": experiment["ebm"]["network"], "iterations": 1, "batch": 16}
    for name, section in (("nvae", experiment["nvae"]), ("wgan", gan)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"seed": 0, name: section}))
    data, model = tmp_path / "data/manifest.json", tmp_path / "nvae/model.safetensors"
    resources = {"threads": 1, "gpus": 0, "limits": Limits()}
    with NoDoubles():
        nvae.run(tmp_path / "nvae.yaml", data, model, **resources)
        wgan.run(tmp_path / "wgan.yaml", data, model, tmp_path / "wgan/model.safetensors", **resources)
    assert (tmp_path / "wgan/model.safetensors").is_file()
