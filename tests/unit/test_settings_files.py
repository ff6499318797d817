"""Settings files: written once per stage and seed, by each variant's values, and only where something changed."""

import json
from pathlib import Path

import pytest
import yaml
from experiments import EXPERIMENTS

from vaebm.config import DataSettings, EBMSettings, Experiment
from vaebm.config.pipeline import check_prepared
from vaebm.config.yaml_files import (
    read_experiment,
    read_settings,
    write_data_settings,
    write_settings,
)
from vaebm.system.errors import UserError


@pytest.mark.parametrize("name", ["1e5", "1_000", "0o17", "017", "1:30", "no", "~", ".inf", "0b1", "2026-01-01", "x"])
def test_text_that_looks_like_something_else_is_read_back_as_text(name: str, tmp_path: Path) -> None:
    """By this project, and by a reader of YAML 1.1."""
    data = DataSettings(dataset="folder", path=name, side=8, channels=1, heldout=1e-5)
    write_data_settings(data, tmp_path)
    assert read_settings(tmp_path / "folder.yaml", DataSettings) == (0, data)
    assert yaml.safe_load((tmp_path / "folder.yaml").read_text())["data"]["path"] == name


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"shape": [16, 16, 3], "splits": {"train": [0, 200], "heldout": [200, 202]}}, None),
        (
            {"shape": [8, 8, 3], "splits": {"train": [0, 200], "heldout": [200, 202]}},
            r"expected images \[16, 16, 3\].*, found \[8, 8, 3\]; remove .* or choose another data.name",
        ),
        (
            {"shape": [16, 16, 3], "splits": {"train": [0, 199], "heldout": [199, 299]}},
            "evaluation.precision_recall.images: expected at most the 199 training",
        ),
        (
            {"shape": [16, 16, 3], "splits": {"train": [0, 20], "heldout": [20, 299]}},
            "nvae.training.batch: expected at most the 20 training images, found 32",
        ),
        (
            {"shape": [16, 16, 3], "splits": {"train": [0, 200], "heldout": [200, 201]}},
            "expected at least 2 held-out images, found 1",
        ),
        ({"shape": [16, 16, 3]}, "expected the manifest of a prepared data set, found something else"),
        ([], "expected the manifest of a prepared data set, found something else"),
    ],
)
def test_a_prepared_set_that_does_not_fit_is_said_before_a_run(
    content: object, said: str | None, tmp_path: Path
) -> None:
    experiment = read_experiment(EXPERIMENTS / "folder.yaml")
    check_prepared(experiment, experiment.data, tmp_path)  # nothing is prepared
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    if said is None:
        check_prepared(experiment, experiment.data, tmp_path)
    else:
        with pytest.raises(UserError, match=f"manifest.json: .*{said}") as error:
            check_prepared(experiment, experiment.data, tmp_path)
        assert "\n" not in str(error.value)


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
    samples = experiment.samples.model_copy(
        update={"chain": experiment.samples.chain.model_copy(update={"steps": 99, "step_size": 0.5})}
    )
    write_settings(experiment.model_copy(update={"samples": samples}), tmp_path, [0])
    assert [path for path, text in before.items() if path.read_text() != text] == [
        tmp_path / "vaebm" / "seed0" / "samples" / "samples.yaml"
    ]


def test_an_incomplete_experiment_says_what_it_lacks_and_writes_what_it_has(tmp_path: Path) -> None:
    """The original NVAE has no energy."""
    alone = read_experiment(EXPERIMENTS / "nvae_mnist.yaml")
    assert alone.missing == ["a section ebm", "a section samples", "a section evaluation"]
    write_settings(alone, tmp_path, [0, 1])
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.yaml")) == [
        "nvae/seed0/nvae.yaml",
        "nvae/seed1/nvae.yaml",
    ]
    whole = read_experiment(EXPERIMENTS / "tiny.yaml")
    assert whole.missing == []
    write_settings(whole.model_copy(update={"ebm": None}), tmp_path / "no_energy", [0])
    assert (
        not (tmp_path / "no_energy" / "vaebm").exists()
        and (tmp_path / "no_energy" / "nvae" / "seed0" / "evaluation" / "evaluation.yaml").is_file()
    )


def variant(tmp_path: Path, text: str) -> Experiment:
    """`tiny` with a section `variants`."""
    path = tmp_path / "mine.yaml"
    path.write_text((EXPERIMENTS / "tiny.yaml").read_text() + f"\nvariants:\n{text}")
    return read_experiment(path)


def test_a_variant_is_the_experiment_with_other_values(tmp_path: Path) -> None:
    experiment = variant(
        tmp_path,
        "  vaebm:\n    ebm: {}\n  small_steps:\n    ebm:\n      chain:\n        step_size: 1e-3\n"
        "    samples:\n      count: 60\n",
    )
    plain, small = experiment.stage_of("vaebm").settings, experiment.stage_of("small_steps").settings
    assert plain == experiment.ebm and isinstance(plain, EBMSettings) and isinstance(small, EBMSettings)
    assert small.chain.step_size == 1e-3 and small.model_copy(update={"chain": plain.chain}) == plain
    samples, alone = experiment.samples_of("small_steps"), experiment.samples_of("nvae")
    assert samples is not None and alone is not None and (samples.count, alone.count, alone.chain.steps) == (60, 200, 0)
    write_settings(experiment, tmp_path, [0])
    assert read_settings(tmp_path / "small_steps" / "seed0" / "ebm.yaml", EBMSettings) == (0, small)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "  mine:\n    ebm:\n      chain:\n        step_size: -1.0\n",
            "variants.mine.ebm.chain.step_size: Input should be greater than 0, found -1.0",
        ),
        ("  mine:\n    ebm:\n      chian: 1\n", "variants.mine.ebm.chian: Extra inputs are not permitted, found 1"),
        (
            "  mine:\n    samples:\n      count: 1\n",
            "variants.mine.samples.count: Input should be greater than or equal to 2, found 1",
        ),
        ("  nvae: {}\n", "variants.nvae: this name belongs to something else in the results; choose another"),
        ("  a/b: {}\n", "variants.a/b.[key]: String should match pattern"),
    ],
)
def test_mistakes_in_variants(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        variant(tmp_path, text)
    assert message in str(error.value) and len(str(error.value).splitlines()) == 1


def test_hash_leaves_resources_out() -> None:
    content = read_experiment(EXPERIMENTS / "tiny.yaml").model_dump()
    first = Experiment.model_validate(content).hash()
    content["resources"]["nvae"]["threads"] = 7
    assert Experiment.model_validate(content).hash() == first
    content["nvae"]["network"]["latents"] += 1
    assert Experiment.model_validate(content).hash() != first


def test_ood_sets_are_names_or_sections(tmp_path: Path) -> None:
    """Their names lack the side of the images; paths of raw files change neither settings files nor hash."""
    experiment = read_experiment(EXPERIMENTS / "celeba64.yaml")
    evaluation = read_experiment(EXPERIMENTS / "digits.yaml").evaluation
    assert evaluation is not None
    sections = {"cifar10": "/a", "svhn": None, "celeba64": None}
    sets = ["interpolation", *({"dataset": name, "path": path} if path else name for name, path in sections.items())]
    own = {
        "dataset": "arrays",
        "path": "raw/c100.npz",
        "name": "cifar100_subset",
        "side": 32,
        "channels": 3,
        "heldout": 1.0,
    }

    def changed(**found: object) -> Experiment:
        content = experiment.model_dump() | {
            "data": {"dataset": "cifar100"},
            "evaluation": evaluation.model_dump() | found,
        }
        content["nvae"]["network"] |= {"groups": [5, 5], "preprocess_blocks": 1}
        return Experiment.model_validate(content)

    made = changed(ood=[*sets, own])
    assert made.evaluation is not None
    assert list(made.evaluation.ood_sets) == ["interpolation", "cifar10", "svhn", "celeba", "cifar100_subset"]
    assert [data.prepared for data in made.datasets] == ["cifar100", "cifar10", "svhn", "celeba64", "cifar100_subset"]
    moved = changed(
        ood=["interpolation", "cifar10", "svhn", {"dataset": "celeba64", "path": "/b"}, own | {"path": "/c.npz"}]
    )
    assert moved.hash() == made.hash() != changed(ood=sets).hash()
    write_settings(made, tmp_path, [0])
    before = (tmp_path / "nvae/seed0/evaluation/evaluation.yaml").read_text()
    write_settings(moved, tmp_path, [0])
    assert (tmp_path / "nvae/seed0/evaluation/evaluation.yaml").read_text() == before and "raw" not in before
