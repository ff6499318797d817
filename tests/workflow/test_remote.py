"""A tracking server and a DVC remote on S3: used from several folders, down, refusing, slow."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mlflow.data
import pytest
from mlflow.tracking import MlflowClient
from servers import BUCKET, KEYS, Proxy, checking_s3, free_port, mlflow_server, s3
from tables import table

from vaebm import tracking
from vaebm.tracking import mirror

pytestmark = pytest.mark.remote
EXPERIMENT = Path("results/tiny")
AGAIN = "`vaebm track results/tiny` does it later"
STAGES = ("classifier seed0", "nvae seed0", "ebm vaebm seed0")


@pytest.fixture(scope="module")
def store():
    """An S3 server."""
    with s3() as address:
        yield address


@pytest.fixture(scope="module")
def server(tmp_path_factory, store):
    """An MLflow server whose artifacts are in that store."""
    with mlflow_server(tmp_path_factory.mktemp("server") / "server.db", store) as address:
        yield address


@pytest.fixture
def results(tiny_run, tmp_path, monkeypatch, capsys):
    """The results in a folder of their own, and a function that mirrors them and returns its line."""
    folder = copied(tiny_run, tmp_path / "results")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

    def track(address: str) -> str:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        tracking.run(EXPERIMENT)
        (line,) = capsys.readouterr().out.splitlines()
        return line

    return SimpleNamespace(folder=folder, track=track)


def copied(project, folder: Path) -> Path:
    """A folder with the data and the results of a run, without the figures whose models would be registered."""
    for name in ("data", "results"):
        shutil.copytree(project.folder / name, folder / name)
    for variant in ("nvae", "vaebm"):
        (folder / EXPERIMENT / variant / "seed0/evaluation/metrics.json").unlink()
    (folder / EXPERIMENT / "tracking.json").unlink()
    return folder


def mirrored(address: str, folder: Path) -> dict:
    """Name → run of all runs that were mirrored from a folder."""
    client, place = MlflowClient(tracking_uri=address), json.loads((folder / EXPERIMENT / "tracking.json").read_text())
    home = client.get_experiment_by_name("vaebm").experiment_id
    origin = client.get_run(place["run"]).data.tags["results"]
    found = {run.info.run_name: run for run in client.search_runs([home], f"tags.results = '{origin}'")}
    assert {run.info.run_id for run in found.values()} == {
        place["run"],
        *(one["run"] for one in place["stages"].values()),
    }
    return found


def check_curves(address: str, folder: Path, runs: dict) -> None:
    """Every line of the histories is there, once."""
    for name, path in (("nvae seed0", "nvae"), ("ebm vaebm seed0", "vaebm")):
        history = (folder / EXPERIMENT / path / "seed0/history.jsonl").read_text().splitlines()
        for key in set(json.loads(history[-1])) - {"step"}:
            points = MlflowClient(tracking_uri=address).get_metric_history(runs[name].info.run_id, key)
            expected = [(line["step"], line[key]) for line in map(json.loads, history) if line.get(key) is not None]
            assert [(point.step, point.value) for point in points] == expected


def test_four_jobs_at_once_on_a_new_server(tiny_run, server, tmp_path):
    """From four folders, as from four machines: each makes its runs, whole, in one experiment."""
    folders = [copied(tiny_run, tmp_path / str(number)) for number in range(4)]
    environment = {**tiny_run.environment(), "PYTHONPATH": str(tiny_run.folder), "MLFLOW_TRACKING_URI": server}
    command = [sys.executable, "-m", "vaebm", "track", str(EXPERIMENT)]
    jobs = [
        subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) for folder in folders
    ]
    page = rf"{server}/#/experiments/\d+/runs\?workflowType=machine_learning"
    for job, folder in zip(jobs, folders, strict=True):
        line = job.communicate()[0]
        assert re.fullmatch(rf"results/tiny: 3 stage runs mirrored to {page}\n", line), line
        runs = mirrored(server, folder)
        assert set(runs) == {"tiny", *STAGES} and {run.info.status for run in runs.values()} == {"FINISHED"}
        check_curves(server, folder, runs)


def test_data_memory_and_files_are_read_elsewhere(tiny_run, results, server, tmp_path):
    """Inputs with the manifest's digest, system metrics, and files for a process that knows the server alone."""
    results.track(server)
    runs = mirrored(server, results.folder)
    facts = json.loads((EXPERIMENT / "nvae/seed0/training.json").read_text())
    for run in runs.values():
        (found,) = run.inputs.dataset_inputs
        assert (found.dataset.name, found.tags[0].value) == ("digits", "training")
        assert facts["data"].startswith(found.dataset.digest) and len(found.dataset.digest) == 36
        assert Path(mlflow.data.get_source(found.dataset).load()).name == "digits"
    memory = facts["system"]["peak_memory_megabytes"]
    assert runs["nvae seed0"].data.metrics["system/peak_memory_megabytes"] == memory > 100
    environment = {**tiny_run.environment(), "MLFLOW_TRACKING_URI": server}
    command = ("mlflow", "artifacts", "download", "--run-id", runs["nvae seed0"].info.run_id, "--dst-path", "here")
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, stdout=subprocess.DEVNULL)
    for name in ("model/model.safetensors", "pictures/curves.png", "training.json"):
        expected = EXPERIMENT / "nvae/seed0" / name.removeprefix("model/")
        assert (tmp_path / "here" / name).read_bytes() == expected.read_bytes()


def test_a_server_that_goes_down_loses_and_doubles_nothing(results, server):
    """Down after every few requests, the last of which it did, and back: the same command continues where it was."""
    proxy, lines = Proxy(server), []
    while not lines or (lines[-1].startswith("warning") and len(lines) < 12):
        proxy.left = 15
        lines.append(results.track(proxy.address))
        problem = f"warning: results/tiny was not mirrored to MLflow ({proxy.address}: the server does not answer)"
        assert (
            "stage runs" in lines[-1] or lines[-1] == f"{problem}; check that it runs and MLFLOW_TRACKING_URI; {AGAIN}"
        )
    assert len(lines) > 3 and "3 stage runs" in lines[-1]
    runs = mirrored(server, results.folder)
    assert set(runs) == {"tiny", *STAGES} and {run.info.status for run in runs.values()} == {"FINISHED"}
    check_curves(server, results.folder, runs)
    done = proxy.count
    assert "3 stage runs" in results.track(proxy.address) and proxy.count - done < 15


def test_a_run_ends_while_the_server_is_down(finished, tiny_run, server):
    """A training runs as ever and the run succeeds; a line names the cause. The next run ends in the same table."""
    where = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    model, state = EXPERIMENT / "vaebm/seed0/model.safetensors", EXPERIMENT / "tracking.json"
    before = (finished.folder / model).stat().st_mtime_ns
    (finished.folder / state).unlink()
    command = ("snakemake", "--cores", "2", "--rerun-triggers", "params", "--forcerun")
    finished.run(*command, "ebm", "--", str(model), str(state), **where)
    assert (finished.folder / model).stat().st_mtime_ns > before
    finished.run(*command, "track", "--", "all", **where)
    for name in ("tracking.log", "track.log"):
        warnings = [line for line in (finished.folder / EXPERIMENT / name).read_text().splitlines() if "warn" in line]
        assert len(warnings) == 1 and warnings[0].endswith(f"check that it runs and MLFLOW_TRACKING_URI; {AGAIN}")
    assert not (finished.folder / EXPERIMENT / "mirrored").exists()

    finished.run("snakemake", "--cores", "2", MLFLOW_TRACKING_URI=server)
    assert table(finished.folder / "results") == table(tiny_run.folder / "results")
    runs = mirrored(server, finished.folder)
    assert set(runs) == {"tiny", *STAGES, *(f"evaluation {variant} seed0" for variant in ("nvae", "vaebm"))}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    (version,) = MlflowClient(server).search_model_versions("name = 'vaebm-tiny-vaebm'")
    assert version.run_id == runs["evaluation vaebm seed0"].info.run_id


def test_a_server_that_refuses_is_one_line_and_a_password_stays_secret(results, server, monkeypatch):
    """Without credentials, with wrong ones, then with the right ones, also in the address."""
    proxy = Proxy(server, password="me:secret")
    for password in (None, "wrong"):
        if password is not None:
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        line = results.track(proxy.address)
        advice = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        assert line.endswith(f"({proxy.address}: the server refuses the credentials); {advice}; {AGAIN}")
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    line = results.track(proxy.address.replace("//", "//me:secret@"))
    assert "3 stage runs mirrored" in line and "secret" not in line + (EXPERIMENT / "tracking.json").read_text()


def test_a_slow_server_costs_a_bounded_time(results, server, monkeypatch):
    """One that takes too long for an answer, and one that answers each time but slowly; nothing is done twice."""
    proxy = Proxy(server)
    proxy.delay = 1.5
    with monkeypatch.context() as hurry:
        hurry.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        assert "the server does not answer in time); check its load; " in results.track(proxy.address)
    proxy.delay = 0.2
    with monkeypatch.context() as hurry:
        hurry.setattr(mirror, "MINUTES", 1 / 60)
        line = results.track(proxy.address)
    assert "expected an end within 0.0166667 minutes, found a server that answers slowly; `vaebm track" in line
    proxy.delay = 0.0
    assert "3 stage runs mirrored" in results.track(proxy.address)
    check_curves(server, results.folder, mirrored(server, results.folder))


def test_a_store_that_refuses_is_one_line(tiny_run, results, server, tmp_path):
    """Where jobs write their files to S3 themselves: no keys, wrong keys, no store, the right ones."""
    client = MlflowClient(tracking_uri=server)
    if found := client.get_experiment_by_name("vaebm"):
        client.rename_experiment(found.experiment_id, f"through the server, {found.experiment_id}")
    client.create_experiment("vaebm", artifact_location=f"s3://{BUCKET}/direct")
    with checking_s3() as (address, keys):
        nobody = {
            name: value for name, value in KEYS.items() if not name.endswith("KEY") and not name.endswith("KEY_ID")
        }
        where = {"MLFLOW_TRACKING_URI": server, "MLFLOW_S3_ENDPOINT_URL": address, "AWS_MAX_ATTEMPTS": "1"}
        nowhere = f"http://127.0.0.1:{free_port()}"
        for environment, problem in (
            (nobody, "refuses the credentials); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
            (KEYS, "refuses the credentials); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
            (keys | {"MLFLOW_S3_ENDPOINT_URL": nowhere}, "does not answer); check MLFLOW_S3_ENDPOINT_URL"),
            (keys, ""),
        ):
            environment = {**tiny_run.environment(), "PYTHONPATH": str(tiny_run.folder), **where, **environment}
            command = [sys.executable, "-m", "vaebm", "track", str(EXPERIMENT)]
            line = subprocess.run(command, cwd=results.folder, env=environment, capture_output=True, text=True).stdout
            if problem:
                assert line.endswith(f"({server}: the store of the artifacts {problem}; {AGAIN}\n")
        assert "3 stage runs mirrored" in line and line.count("\n") == 1
