"""Experiment files and names of any kind: read, or refused in one short line."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
import yaml
from commands import run

import vaebm.ebm.train
from vaebm.config import Experiment, NVAENetworkSettings, NVAETrainingSettings
from vaebm.config import pipeline as pipeline_module
from vaebm.config.pipeline import resolve
from vaebm.config.schema import schema
from vaebm.config.yaml_files import LARGEST, read_experiment, read_yaml, validate
from vaebm.ebm.divergence_guard import Guard
from vaebm.nvae.model import NVAE, load_nvae
from vaebm.nvae.train import NVAETrainer
from vaebm.system.checkpoint import save_model
from vaebm.system.errors import UserError

ROOT = Path(__file__).parents[2]
TINY = (ROOT / "config" / "experiments" / "tiny.yaml").read_text(encoding="utf-8")
BAD_NAMES = [
    "",
    "a b",
    "a&b",
    "a'b",
    "a;b",
    "tiny.v2",
    "-a",
    "a/b",
    "../a",
    "a\\b",
    "a$b",
    "é",
    "a\n",
    "a{b}",
    "*",
    "a:b",
]
GOOD_NAMES = ["a", "A-b_c", "_a", "0", "2-x", "x" * 60]


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    line = str(error.value)
    assert "\n" not in line and line.isprintable() and len(line) <= 1000, line[:2000]
    return line


def tiny(**changes: object) -> dict[str, object]:
    return {**read_experiment(ROOT / "config" / "experiments" / "tiny.yaml").model_dump(), **changes}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "config" / "experiments").mkdir(parents=True)
    (tmp_path / "config" / "experiments" / "tiny.yaml").write_text(TINY, encoding="utf-8")
    (tmp_path / "config" / "config.yaml").write_text("experiments: [tiny]\nseeds: [0]\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", [*BAD_NAMES, "x" * 300, "data", "Data"])
def test_experiment_of_a_bad_name_is_refused_before_anything_is_written(name: str, project: Path) -> None:
    with pytest.raises(UserError, match=r"config.yaml: experiments: |\.yaml: ") as error:
        resolve({"experiments": [name]}, write=True)
    one_line(error)
    assert not (project / "results").exists()
    if "/" not in name and name not in ("", "x" * 300):
        path = project / "config" / "experiments" / f"{name}.yaml"
        path.write_text(TINY, encoding="utf-8")
        with pytest.raises(UserError):
            read_experiment(path)


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_good_names_work_everywhere(name: str, project: Path) -> None:
    path = project / "config" / "experiments" / f"{name}.yaml"
    path.write_text(TINY + f"\nvariants:\n  {json.dumps(name)}: {{}}\n", encoding="utf-8")
    found = resolve({"experiments": [name]}, write=True)
    assert found.experiments[name].models == ["nvae", name]
    assert (project / "results" / name / name / "seed0" / "ebm.yaml").is_file()


@pytest.mark.parametrize("name", [*BAD_NAMES, "mirrored", "Mirrored", "nvae", "NVAE", "classifier", "reference"])
def test_variant_of_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="variants") as error:
        validate(Experiment, tiny(variants={name: {}}), "mine.yaml")
    one_line(error)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_data_set_of_a_bad_name_is_refused(name: str) -> None:
    data = {"dataset": "folder", "side": 8, "channels": 1, "heldout": 0.5, "name": name}
    with pytest.raises(UserError, match="data.name") as error:
        validate(Experiment, tiny(data=data), "mine.yaml")
    one_line(error)


def test_schema_has_the_rule_of_names() -> None:
    pattern = "^[A-Za-z0-9_][A-Za-z0-9_-]*$"
    text = json.dumps(schema())
    assert text.count(json.dumps(pattern)) == 3 and "\\\\w" not in text


# Files.


def test_file_of_another_encoding_or_none_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes("a: é".encode("utf-8-sig"))
    assert read_yaml(path) == {"a": "é"}
    for content in ("a: é".encode("latin-1"), "a: b".encode("utf-16"), b"\0", bytes(range(256))):
        path.write_bytes(content)
        with pytest.raises(UserError, match="a.yaml") as error:
            read_yaml(path)
        one_line(error)
    for place in (tmp_path, tmp_path / ("x" * 300), path / "b", Path("a\0b")):
        with pytest.raises(UserError) as error:
            read_yaml(place)
        one_line(error)


@pytest.mark.parametrize(
    "text",
    [
        "a: \a",
        "a: [" * 3000,
        "a: !!int x",
        "&a [*a]",
        "a: &a {b: *a}",
        "? [a]\n: b",
        "a: b\n c: d",
        "\t a",
        "a: &a " + "x" * 100 + "\nb: *c",
        "%YAML 9.9\n---\na",
        "a: *b",
        "!!python/object/apply:os.system [echo]",
        "a\n---\nb",
        "@",
    ],
)
def test_what_is_no_yaml_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match="a.yaml") as error:
        validate(Experiment, read_yaml(tmp_path / "a.yaml"), str(tmp_path / "a.yaml"))
    one_line(error)


def test_aliases_and_sizes_have_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: &a [1, 2]\nb: [*a, *a]\n")
    assert read_yaml(path) == {"a": [1, 2], "b": [[1, 2], [1, 2]]}
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))
    for text in (bomb, "a: " + "x" * LARGEST):
        path.write_text(text)
        began = time.monotonic()
        with pytest.raises(UserError, match="a.yaml: expected a YAML file of at most") as error:
            read_yaml(path)
        one_line(error)
        assert time.monotonic() - began < 5


def test_many_and_long_mistakes_are_one_short_line(tmp_path: Path) -> None:
    for content in (
        tiny(**{f"key{number}": number for number in range(20_000)}),
        tiny(**{"k" * 100_000: 1}),
        tiny(nvae="x" * 5_000_000),
        tiny(data={"dataset": "x" * 100_000}),
        tiny(data={"dataset": "digits\nx"}),
        tiny(variants={"x" * 100_000 + "!": {}}),
        tiny(variants={"mine": {"ebm": {"potential": "y" * 100_000}}}),
        tiny(variants={f"a{number}": {"ebm": {f"b{number}": 1}} for number in range(1000)}),
        "x" * 100_000,
        [[[1] * 100] * 100] * 100,
    ):
        with pytest.raises(UserError, match="^mine.yaml: ") as error:
            validate(Experiment, content, "mine.yaml")
        one_line(error)
    with pytest.raises(UserError, match=r"key0: unknown key; .*also not right: key1, key2, key3 and 19,996 more$"):
        validate(Experiment, tiny(**{f"key{number}": number for number in range(20_000)}), "mine.yaml")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "3",
        "[" + "1, " * 50_000 + "1]",
        "experiments: " + "x" * 100_000,
        "experiments: [tiny]\nseeds: [" + "9" * 9999 + "]",
        "a: 1\nb: 2",
        "experiments: [tiny, tiny]",
        "experiments: [[tiny]]",
        "experiments: {}",
    ],
    ids=range(9),
)
def test_configuration_of_any_kind_is_one_line(content: str, project: Path) -> None:
    (project / "config" / "config.yaml").write_text(content)
    with pytest.raises(UserError, match="config.yaml") as error:
        resolve({}, write=True)
    one_line(error)


def test_folder_that_cannot_be_written_is_one_line(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "results").touch()
    with pytest.raises(UserError, match="results/tiny/.*: cannot be written: Not a directory") as error:
        resolve({}, write=True)
    one_line(error)

    def closed(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied", "config/experiments")

    monkeypatch.setattr(pipeline_module, "read_experiment", closed)
    with pytest.raises(UserError, match="config/experiments: cannot be read or written: Permission denied"):
        resolve({}, write=True)


def test_incomplete_experiments_are_one_line(project: Path) -> None:
    for name in ("one", "other"):
        content = {key: value for key, value in tiny().items() if key in ("data", "nvae")}
        (project / "config" / "experiments" / f"{name}.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="one.yaml: .*; so are other; ") as error:
        resolve({"experiments": ["one", "other"]}, write=True)
    one_line(error)


# Networks and trainings.


def test_classifier_of_small_images_is_refused_at_once() -> None:
    data = {"dataset": "arrays", "side": 2, "channels": 1, "heldout": 0.5}
    content = tiny(data=data)
    content["nvae"]["network"] |= {"groups": [1], "channels_encoder": 8, "channels_decoder": 8}
    with pytest.raises(UserError, match="evaluation.classifier: expected images of at least 4×4, found 2×2"):
        validate(Experiment, content, "mine.yaml")


@pytest.mark.parametrize(
    "key",
    ["preprocess_cells", "postprocess_cells", "cells_encoder", "cells_decoder", "flows", "groups", "preprocess_blocks"],
)
def test_network_of_too_many_cells_is_refused_at_once(key: str, tmp_path: Path) -> None:
    network = tiny()["nvae"]["network"]
    model = NVAE(validate(NVAENetworkSettings, network, "tiny.yaml"), (1, 8, 8))
    for number in (10**6, 10**9, 10**30):
        changed = network | {key: [number] if key == "groups" else number}
        began = time.monotonic()
        with pytest.raises(UserError, match="at most 2,000 cells") as error:
            validate(NVAENetworkSettings, changed, "mine.yaml")
        one_line(error)
        save_model(tmp_path / "model.pt", "nvae", changed, model.state_dict(), shape=[1, 8, 8])
        with pytest.raises(UserError, match="model.pt: expected an NVAE of this version"):
            load_nvae(tmp_path / "model.pt")
        assert time.monotonic() - began < 5


def test_architecture_without_batch_norms_survives_a_step_that_is_not_finite() -> None:
    network = tiny()["nvae"]["network"] | {"architecture": "res_elu"}
    nvae = NVAE(NVAENetworkSettings.model_validate(network), (1, 8, 8)).train()
    settings = NVAETrainingSettings.model_validate({"epochs": 10, "batch": 4})
    trainer = NVAETrainer(nvae, settings, total=10, seed=0)
    before = {name: value.clone() for name, value in nvae.state_dict().items()}
    bad = dict(nvae.named_parameters())["prior_constant"]
    bad.data.fill_(float("nan"))
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    assert not trainer.step(images, 0, 1e-3, penalise=True).finite
    after = nvae.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items() if name != "prior_constant")


def test_reason_of_a_divergence_is_kept_after_a_good_iteration() -> None:
    experiment = read_experiment(ROOT / "config" / "experiments" / "tiny.yaml")
    guard = Guard(experiment.ebm.guard)
    guard.watch(float("nan"), 0.0, 1.0, 1.0)
    guard.watch(0.0, 0.0, 1.0, 1.0)
    assert guard.reason == "" and guard.last_reason == "loss nan, gradient norm 1"
    assert "last_reason" in Path(vaebm.ebm.train.__file__).read_text(encoding="utf-8")


def test_snakemake_refuses_a_name_or_damaged_pins_in_one_line(project: Path) -> None:
    (project / "Snakefile").symlink_to(ROOT / "Snakefile")
    (project / "workflow").symlink_to(ROOT / "workflow")
    (project / "data.dvc").write_text("outs:\n<<<<<<< HEAD\n")
    done = run("-m", "snakemake", "-n", "--cores", "1", folder=project)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and done.stderr.startswith("data.dvc")
    (project / "data.dvc").unlink()
    (project / "config" / "experiments" / "tiny.v2.yaml").write_text(TINY, encoding="utf-8")
    done = run("-m", "snakemake", "-n", "--cores", "1", "--config", "experiments=[tiny.v2]", folder=project)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "found 'tiny.v2'" in done.stderr
