"""Experiment files: every mistake is one line with file, key, what was expected and what was found."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vaebm.config import EBMSettings, Experiment, UserError
from vaebm.settings import read_experiment, read_settings, write_settings

EXPERIMENTS = Path(__file__).parents[2] / "config" / "experiments"


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_experiment_files_are_valid_and_write_out_every_default(path: Path) -> None:
    assert yaml.safe_load(yaml.safe_dump(read_experiment(path).model_dump())) == read_experiment(path).model_dump()
    written = yaml.safe_load(path.read_text())

    def keys(value: object, prefix: str = "") -> set[str]:
        return {full for key, inner in value.items() for full in {prefix + key} | keys(inner, f"{prefix}{key}.")} if isinstance(value, dict) else set()

    assert keys(written) == keys(read_experiment(path).model_dump())


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            "latents: 4",
            "latents: 4\n    latentz: 4",
            "nvae.network.latentz: unknown key; keys that exist: channels_encoder, channels_decoder, groups,",
        ),
        ("latents: 4", "latents: -4", "nvae.network.latents: Input should be greater than 0, found -4"),
        ("latents: 4", "latents: '4'", "nvae.network.latents: Input should be a valid integer, found '4'"),
        ("latents: 4", "latents: 4\n    latents: 5", "not YAML: key 'latents' stands twice"),
        ("latents: 4", "latents: [4", "not YAML"),
        ("    latents: 4\n", "", "nvae.network.latents: expected a value, found none"),
        ("shards: 2", "shards: 2000", "samples: shards must be at most the 20 batches that count and batch make, found 2000"),
        ("warmup_epochs: 2", "warmup_epochs: 2000", "nvae: training.warmup_epochs must be below training.epochs"),
        ("potential: noise", "potential: loud", "ebm.potential: Input should be 'noise' or 'density', found 'loud'"),
        ("    - turned", "    - interpolation", "evaluation.ood: each set at most once"),
        ("dataset: digits", "dataset: digitz", "data.dataset: there is no data set 'digitz'; data sets that exist: digits"),
        ("beta1: 0.99", "beta1: 1.0", "ebm.training.beta1: Input should be less than 1, found 1.0"),
        ("preprocess_blocks: 1", "preprocess_blocks: 3", "nvae.network: 8×8 images cannot be halved 4 times"),
        ("      - 0\n      - 2\n", "      - 0\n      - 1\n      - 2\n      - 3\n", "ebm.network.down: 8×8 images cannot be halved 4 times"),
        ("batch: 32", "batch: 2000", "ebm.training.batch: expected at most the 1500 training images, found 2000"),
        ("kid_subset_size: 1000", "kid_subset_size: 20000", "evaluation.kid_subset_size: expected at most the smaller of samples and training images, 1500"),
        ("\nebm:", "\nebn:", "ebn: unknown key; keys that exist: data, nvae, ebm, samples, evaluation, resources"),
    ],
)
def test_mistakes(tmp_path: Path, before: str, after: str, message: str) -> None:
    text = (EXPERIMENTS / "digits.yaml").read_text()
    assert before in text
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(UserError) as error:
        read_experiment(path)
    lines = str(error.value).splitlines()
    assert all(line.startswith(str(path)) for line in lines)
    assert any(message in line for line in lines), str(error.value)


def test_unknown_experiment_names_those_that_exist() -> None:
    with pytest.raises(UserError, match=r"there is no experiment 'digitz'; experiments that exist: digits, tiny"):
        read_experiment(EXPERIMENTS / "digitz.yaml")


def test_an_experiment_cannot_take_the_place_of_something_else() -> None:
    with pytest.raises(UserError, match="an experiment cannot be called 'data'"):
        read_experiment(EXPERIMENTS / "data.yaml")


def test_numbers_without_a_point_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text((EXPERIMENTS / "digits.yaml").read_text().replace("step_size: 0.04", "step_size: 4e-2"))
    assert read_experiment(path).samples.chain.step_size == 0.04


def test_settings_files_are_written_once_and_read_back(tmp_path: Path) -> None:
    experiment = read_experiment(EXPERIMENTS / "tiny.yaml")
    write_settings(experiment, tmp_path, [0, 3])
    files = sorted(tmp_path.rglob("*.yaml"))
    times = [path.stat().st_mtime_ns for path in files]
    write_settings(experiment, tmp_path, [0, 3])
    assert [path.stat().st_mtime_ns for path in files] == times
    assert read_settings(tmp_path / "vaebm" / "seed3" / "ebm.yaml", EBMSettings) == (3, experiment.ebm)
    with pytest.raises(UserError, match="expected the keys 'seed' and 'ebm', found"):
        read_settings(tmp_path / "nvae" / "seed0" / "nvae.yaml", EBMSettings)


def test_a_change_touches_the_files_of_its_stage_alone(tmp_path: Path) -> None:
    """The baseline takes no step of the chain: its settings do not know the chain's."""
    experiment = read_experiment(EXPERIMENTS / "tiny.yaml")
    write_settings(experiment, tmp_path, [0])
    before = {path: path.read_text() for path in tmp_path.rglob("*.yaml")}
    samples = experiment.samples.model_copy(update={"chain": experiment.samples.chain.model_copy(update={"steps": 99, "step_size": 0.5})})
    write_settings(experiment.model_copy(update={"samples": samples}), tmp_path, [0])
    assert [path for path, text in before.items() if path.read_text() != text] == [tmp_path / "vaebm" / "seed0" / "samples" / "samples.yaml"]


def test_hash_leaves_resources_out() -> None:
    content = read_experiment(EXPERIMENTS / "tiny.yaml").model_dump()
    first = Experiment.model_validate(content).hash()
    content["resources"]["nvae"]["threads"] = 7
    assert Experiment.model_validate(content).hash() == first
    content["nvae"]["network"]["latents"] += 1
    assert Experiment.model_validate(content).hash() != first


def test_configuration_imports_neither_torch_nor_mlflow() -> None:
    code = "import sys, vaebm.settings; print([name for name in ('torch', 'mlflow', 'sklearn') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
