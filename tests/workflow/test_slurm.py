"""The pipeline on a cluster of one node, started for this test: requests of each stage, GPUs, killed jobs."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from tables import table

SBIN = f"{os.environ['PATH']}{os.pathsep}/usr/sbin"
DAEMONS = ("munged", "slurmctld", "slurmd")
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        any(shutil.which(name, path=SBIN) is None for name in DAEMONS),
        reason=f"needs {', '.join(DAEMONS)}: apt-get install slurm-wlm",
    ),
]

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# the node is said to have more than the machine
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
SchedulerParameters=sched_interval=2,sched_min_interval=0
# ended jobs stay in the queue for the whole test
MinJobAge=3600
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=8000 Gres=gpu:fake:2
PartitionName=test Nodes={host} Default=YES MaxTime=INFINITE State=UP
PartitionName=urgent Nodes={host} MaxTime=INFINITE State=UP PriorityTier=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
"""

PROFILE = "profiles/slurm/config.yaml"
GRES = "default-resources:\n  - gpu_gres=gpu:fake\n"

STAGES = ("data", "classifier", "nvae", "ebm", "samples", "evaluation", "benchmarks")
ASKED = {stage: {"threads": 1, "mem_mb": 1010 + number, "runtime": 11 + number} for number, stage in enumerate(STAGES)}
"""Resources of the experiment, different for each stage."""
ASKED["data"]["threads"] = 4  # as many as the node has, and more than the machine where this runs may have


@dataclass(frozen=True)
class Cluster:
    """A running cluster: the environment in which Slurm's commands, and jobs, find it."""

    environment: dict[str, str]

    def tell(self, *command: str) -> str:
        """What one of Slurm's commands prints."""
        return subprocess.run(
            command, env=os.environ | self.environment, stdout=subprocess.PIPE, text=True, check=True
        ).stdout

    def jobs(self) -> list[dict[str, str]]:
        """All submitted jobs in order, as `scontrol` shows them: field → value; `rule` is Snakemake's name."""
        shown = [
            dict(re.findall(r"(\S+?)=(\S*)", line))
            for line in self.tell("scontrol", "--oneliner", "show", "jobs").splitlines()
            if line.startswith("JobId=")
        ]
        return [
            job | {"rule": re.match(r"rule_([a-z]+)", job["Comment"])[1]}
            for job in sorted(shown, key=lambda job: int(job["JobId"]))
        ]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One node, two GPUs that are only names, no accounting database; all files in a folder of its own."""
    folder = tmp_path_factory.mktemp("slurm")
    host = socket.gethostname().split(".")[0]
    values = {"folder": folder, "host": host, "user": getpass.getuser(), "controller": free_port(), "node": free_port()}
    (folder / "slurm.conf").write_text(CONFIGURATION.format(**values))
    for number in range(2):  # Slurm wants devices; it only looks at them
        (folder / f"gpu{number}").symlink_to(os.devnull)
    (folder / "gres.conf").write_text(f"AutoDetect=off\nName=gpu Type=fake File={folder}/gpu[0-1]\n")
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(64))
    (folder / "munge.key").chmod(0o600)
    # Snakemake's jobs lose SLURM_CONF on their way to srun
    (folder / "bin").mkdir()
    srun = folder / "bin" / "srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun")} "$@"\n')
    srun.chmod(0o755)

    cluster = Cluster({"SLURM_CONF": f"{folder}/slurm.conf", "PATH": f"{folder}/bin{os.pathsep}{SBIN}"})
    munge = [
        f"--{name}={folder}/munge.{suffix}"
        for name, suffix in (("socket", "socket"), ("key-file", "key"), ("pid-file", "pid"), ("seed-file", "seed"))
    ]
    commands = (["munged", "--foreground", "--force", *munge], ["slurmctld", "-D"], ["slurmd", "-D"])
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            with (folder / f"{command[0]}.log").open("wb") as log:
                program = shutil.which(command[0], path=SBIN)
                assert program is not None
                daemons.append(
                    subprocess.Popen(
                        [program, *command[1:]], env=os.environ | cluster.environment, stdout=log, stderr=log
                    )
                )
            time.sleep(0.5)
        end = time.monotonic() + 60
        while (
            "idle"
            not in subprocess.run(
                ["sinfo", "--noheader", "--format=%t"],
                env=os.environ | cluster.environment,
                capture_output=True,
                text=True,
            ).stdout
        ):
            logs = "\n".join((folder / f"{command[0]}.log").read_text()[-2000:] for command in commands)
            assert time.monotonic() < end and all(daemon.poll() is None for daemon in daemons), logs
            time.sleep(0.2)
        yield cluster
    finally:
        subprocess.run(
            ["scancel", "--full", "--signal=KILL", f"--user={getpass.getuser()}"],
            env=os.environ | cluster.environment,
            check=False,
        )
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


@dataclass(frozen=True)
class Run:
    """A Snakemake that submits jobs, and the file with what it prints."""

    process: subprocess.Popen[bytes]
    output: Path

    def finish(self) -> None:
        """Wait for its end; it has to succeed."""
        assert self.process.wait(timeout=1800) == 0, self.output.read_text()


@pytest.fixture
def submit(cluster: Cluster) -> Iterator[Callable[..., Run]]:
    """Starts `snakemake --profile profiles/slurm` in a project, with frequent status checks; ends with the test."""
    runs = []

    def run(project, *arguments) -> Run:
        command = [
            "snakemake",
            "--profile",
            "profiles/slurm",
            "--slurm-init-seconds-before-status-checks",
            "2",
            *arguments,
        ]
        environment = project.environment()
        environment |= cluster.environment | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{cluster.environment['PATH']}"
        }
        output = project.folder / "printed"
        with output.open("wb") as file:
            runs.append(subprocess.Popen(command, cwd=project.folder, env=environment, stdout=file, stderr=file))
        return Run(runs[-1], output)

    yield run
    for process in runs:
        process.kill()
        process.wait()


def ask(project, changes):
    """Change resources of the experiment `tiny`."""
    path = project.folder / "config" / "experiments" / "tiny.yaml"
    experiment = yaml.safe_load(path.read_text())
    for stage, resources in changes.items():
        experiment["resources"][stage] |= resources
    path.write_text(yaml.safe_dump(experiment, sort_keys=False))


def test_every_stage_asks_for_its_own_and_a_killed_training_goes_on(cluster, submit, clone, tiny_run):
    """With GPUs by gres. The energy's training is killed with its whole job. The table is that of a local run."""
    clone.edit("config/config.yaml", "  - digits\n  - stacked_digits\n", "  - tiny\n")
    ask(clone, ASKED | {"ebm": ASKED["ebm"] | {"gpu": 1}})
    with (clone.folder / PROFILE).open("a") as file:
        file.write(GRES)
    clone.edit(
        "workflow/rules/ebm.smk", "vaebm ebm {input.settings}", "vaebm ebm {input.settings} --checkpoint-every 0"
    )
    planned = {
        rule: count for rule, count in clone.planned().items() if rule not in ("pin", "tracking", "track")
    }  # those are local
    before = {job["JobId"] for job in cluster.jobs()}
    run, energy = submit(clone), clone.folder / "results" / "tiny" / "vaebm" / "seed0"
    while not list(energy.glob("checkpoints/*/*.json")):
        assert run.process.poll() is None, run.output.read_text()
        time.sleep(0.01)
    (killed,) = (job["JobId"] for job in cluster.jobs() if job["rule"] == "ebm" and job["JobId"] not in before)
    cluster.tell("scancel", "--full", "--signal=KILL", killed)
    run.finish()

    jobs = [job for job in cluster.jobs() if job["JobId"] not in before]
    assert Counter(job["rule"] for job in jobs) == planned | {"ebm": 2} and planned["samples"] == 4
    for job in jobs:
        asked = ASKED["evaluation" if job["rule"] == "reference" else job["rule"]]
        found = {
            "threads": int(job["CPUs/Task"]),
            "mem_mb": int(job["MinMemoryNode"].removesuffix("M")),
            "runtime": int(job["TimeLimit"][3:5]),
        }
        assert found == asked, job
        assert job["NumNodes"] == "1" and "TresPerJob" not in job, job
        assert job.get("TresPerNode") == ("gres:gpu:fake:1" if job["rule"] == "ebm" else None), job
        assert job["JobState"] == ("CANCELLED" if job["JobId"] == killed else "COMPLETED"), job
    assert "ebm: resuming at step " in (energy / "ebm.log").read_text()
    assert table(clone.folder / "results") == table(tiny_run.folder / "results")


def test_a_job_gets_the_gpus_that_its_stage_asks_for(cluster, submit, finished):
    """Slurm's choice arrives at the program; where there is nothing behind it, the job says so and uses the CPU."""
    changes = "set=[resources.ebm.gpu=2, ebm.network.widths=[1, 1]]"  # a job reads the configuration again
    finished.edit(
        "workflow/rules/ebm.smk", "python -m vaebm ebm", "echo $CUDA_VISIBLE_DEVICES > gpus; python -m vaebm ebm"
    )
    submit(finished, "--forcerun", "ebm", "--until", "ebm", "--config", changes).finish()
    (job,) = [job for job in cluster.jobs() if job.get("TresPerJob")]
    assert job["rule"] == "ebm" and job["TresPerJob"] == "gres:gpu:2" and job["JobState"] == "COMPLETED"
    assert (finished.folder / "gpus").read_text() == "0,1\n"


def test_a_preempted_training_with_gpus_by_gres_is_requeued_and_resumes(cluster, submit, finished):
    """A job of a partition that preempts takes the node. Slurm starts the training again, as the same job."""
    with (finished.folder / PROFILE).open("a") as file:
        file.write(f"slurm-requeue: true\n{GRES}")
    finished.edit(
        "workflow/rules/ebm.smk",
        "python -m vaebm ebm {input.settings}",
        "echo $CUDA_VISIBLE_DEVICES >> gpus; python -m vaebm ebm {input.settings} --checkpoint-every 0",
    )
    before = {job["JobId"] for job in cluster.jobs()}
    run = submit(finished, "--until", "ebm", "--config", "set=[resources.ebm.gpu=2, ebm.training.iterations=60]")
    energy = finished.folder / "results" / "tiny" / "vaebm" / "seed0"
    while not list(energy.glob("checkpoints/*/*.json")):
        assert run.process.poll() is None, run.output.read_text()
        time.sleep(0.01)
    urgent = ["--partition=urgent", "--exclusive", "--comment=rule_urgent", "--output=/dev/null", "--wrap=true"]
    cluster.tell("sbatch", *urgent)
    while (training := next(job for job in cluster.jobs() if job["JobId"] not in before))["Restarts"] == "0":
        assert run.process.poll() is None, run.output.read_text()
        time.sleep(0.1)
    while (training := next(job for job in cluster.jobs() if job["rule"] == "ebm" and job["JobId"] not in before))[
        "JobState"
    ] not in ("RUNNING", "COMPLETED"):
        if training["JobState"] == "PENDING":  # not in two minutes
            cluster.tell("scontrol", "update", f"JobId={training['JobId']}", "StartTime=now")
        time.sleep(1)
    run.finish()
    jobs = {job["rule"]: job for job in cluster.jobs() if job["JobId"] not in before}
    assert jobs.keys() == {"ebm", "urgent"} and {job["JobState"] for job in jobs.values()} == {"COMPLETED"}
    assert jobs["ebm"]["Restarts"] == "1" and jobs["ebm"]["TresPerNode"] == "gres:gpu:fake:2"
    assert "TresPerJob" not in jobs["ebm"] and (finished.folder / "gpus").read_text() == "0,1\n0,1\n"
    assert "ebm: resuming at step " in (energy / "ebm.log").read_text()
