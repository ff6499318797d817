"""Experiment files: every mistake is one line with file, key, what was expected and what was found."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from experiments import EXPERIMENTS, written_out
from ruamel.yaml import YAML

from vaebm.config import DataSettings, EBMSettings, Experiment
from vaebm.config.yaml_files import (
    check_prepared,
    read_experiment,
    read_settings,
    read_yaml,
    write_data_settings,
    write_settings,
)
from vaebm.system.errors import UserError

OTHERS = "  - dataset: arrays\n    name: {}\n    side: {}\n    channels: 1\n    heldout: 1{}"
"""A set of the user's that held-out images are told from."""


@pytest.mark.parametrize(
    ("name", "shape", "training"),
    [  # scales × groups, latents, flows, bits; epochs, batch, learning rate, warm-up, regulariser and where it starts
        ("cifar10", ([30], 20, 1, 8), (400, 32 * 8, 1e-2, 5, 0.1, None)),
        ("celeba64", ([5] * 3, 20, 1, 8), (50, 32 * 8, 1e-2, 1, 0.1, None)),
        ("lsun_church64", ([5] * 3, 20, 1, 8), (60, 32 * 8, 1e-2, 1, 0.1, None)),
        ("celebahq256", ([4] * 5, 20, 2, 5), (200, 8 * 8, 6e-3, 5, 0.01, 10.0)),
        ("nvae_cifar10", ([30], 20, 1, 8), (400, 32 * 8, 1e-2, 5, 0.01, None)),
        ("nvae_mnist", ([10, 5], 20, 0, 8), (400, 200 * 2, 1e-2, 5, 0.01, None)),
    ],
)
def test_nvae_settings_are_the_published_ones(
    name: str, shape: tuple[object, ...], training: tuple[object, ...]
) -> None:
    stage = read_experiment(EXPERIMENTS / f"{name}.yaml").nvae
    network, schedule = stage.network, stage.training
    assert (network.groups, network.latents, network.flows, network.bits) == shape
    weights = (schedule.norm_weight, schedule.norm_weight_initial)
    assert (schedule.epochs, schedule.batch, schedule.learning_rate, schedule.warmup_epochs, *weights) == training


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
        ("latents: 4", "latents: 4\n    latents: 5", 'not YAML: found duplicate key "latents"'),
        ("latents: 4", "latents: [4", "not YAML"),
        ("    steps: 5\n", "", "ebm.chain.steps: expected a value, found none"),
        (
            "shards: 2",
            "shards: 2000",
            "samples: shards must be at most the 20 batches that count and batch make, found 2000",
        ),
        ("warmup_epochs: 2", "warmup_epochs: 2000", "nvae: training.warmup_epochs must be below training.epochs"),
        (
            "potential: noise",
            "potential: loud",
            "ebm.potential: Input should be 'noise', 'density' or 'pixels', found 'loud'",
        ),
        ("start: prior", "start: uniform", "ebm: start uniform belongs to potential pixels, found potential noise"),
        (
            "  - turned",
            "  - interpolation",
            "evaluation.ood: each set at most once, found interpolation, interpolation",
        ),
        (
            "  - turned",
            "  - turnd",
            "evaluation.ood.1: there is no set 'turnd'; sets that exist: interpolation, turned, photographs, digits,",
        ),
        ("  - turned", "  - digits", "evaluation.ood: digits: expected another set than the experiment's own"),
        ("  - turned", "  - svhn", "evaluation.ood: svhn: expected images of 1 channel(s), as digits has, found 3"),
        (
            "  - turned",
            OTHERS.format("other", 4, ""),
            "evaluation.ood: other: expected at least 8×8 pixels, as digits has, found 4×4",
        ),
        ("  - turned", OTHERS.format("celeba", 8, ""), "evaluation.ood: name: figures call another set celeba"),
        (
            "  - turned",
            OTHERS.format("other", 8, "\n    sidez: 4"),
            "evaluation.ood.1.sidez: unknown key; keys that exist: dataset, path, name, side,",
        ),
        (
            "  - turned",
            OTHERS.format("other", "big", ""),
            "evaluation.ood.1.side: Input should be a valid integer, found 'big'",
        ),
        (
            "dataset: digits",
            "dataset: digitz",
            "data.dataset: there is no data set 'digitz'; data sets that exist: digits",
        ),
        ("beta1: 0.99", "beta1: 1.0", "ebm.training.beta1: Input should be less than 1, found 1.0"),
        ("preprocess_blocks: 1", "preprocess_blocks: 3", "nvae.network: 8×8 images cannot be halved 4 times"),
        (
            "    - 0\n    - 2\n",
            "    - 0\n    - 1\n    - 2\n    - 3\n",
            "ebm.network.down: 8×8 images cannot be halved 4 times",
        ),
        ("batch: 32", "batch: 2000", "ebm.training.batch: expected at most the 1500 training images, found 2000"),
        (
            "kid_subset_size: 1000",
            "kid_subset_size: 20000",
            "evaluation.kid_subset_size: expected at most the 1500 training images, found 20000",
        ),
        (
            "\nebm:",
            "\nebn:",
            "ebn: unknown key; keys that exist: data, nvae, prior, ebm, samples, evaluation, variants, resources",
        ),
    ],
)
def test_mistakes(tmp_path: Path, before: str, after: str, message: str) -> None:
    text = written_out("digits")
    assert before in text
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(UserError) as error:
        read_experiment(path)
    lines = str(error.value).splitlines()
    assert all(line.startswith(str(path)) for line in lines)
    assert any(message in line for line in lines), str(error.value)


@pytest.mark.parametrize(
    ("name", "chains", "training"),
    [  # steps in training, in the test, step size, negatives; iterations, batch, learning rate, spectral weight
        ("cifar10", (10, 16, 8e-5, "sample"), (30_000, 32, 4e-5, 0.2)),
        ("celeba64", (10, 20, 5e-6, "mean"), (30_000, 32, 5e-5, 0.2)),
        ("lsun_church64", (10, 20, 4e-6, "mean"), (30_000, 32, 4e-5, 0.2)),
        ("celebahq256", (6, 24, 3e-6, "mean"), (9_000, 4 * 4, 4e-5, 0.3)),
    ],
)
def test_settings_of_the_energy_are_the_published_ones(
    name: str, chains: tuple[object, ...], training: tuple[object, ...]
) -> None:
    experiment = read_experiment(EXPERIMENTS / f"{name}.yaml")
    stage, samples = experiment.ebm, experiment.samples
    assert stage is not None and samples is not None
    assert (stage.chain.steps, samples.chain.steps, stage.chain.step_size, stage.negatives) == chains
    assert samples.chain.step_size == stage.chain.step_size and samples.count == 50_000
    schedule = stage.training
    assert (schedule.iterations, schedule.batch, schedule.learning_rate, schedule.spectral_weight) == training
    assert (schedule.beta1, schedule.beta2, schedule.weight_decay, schedule.adaptive_clip) == (0.99, 0.999, 3e-5, True)
    assert (stage.potential, schedule.energy_penalty, schedule.average_decay, schedule.learning_rate_decay) == (
        "density",
        0,
        0,
        "none",
    )


def test_unknown_experiment_names_those_that_exist() -> None:
    with pytest.raises(
        UserError, match=r"there is no experiment 'digitz'; experiments that exist: .*, digits, .*, tiny$"
    ):
        read_experiment(EXPERIMENTS / "digitz.yaml")


def test_an_experiment_cannot_take_the_place_of_something_else() -> None:
    with pytest.raises(UserError, match="an experiment cannot be called 'data'"):
        read_experiment(EXPERIMENTS / "data.yaml")


def test_values_are_those_that_an_editor_sees(tmp_path: Path) -> None:
    """YAML 1.2's, as another reader has them: numbers without a point, and none of YAML 1.1's surprises."""
    text = "".join(
        f"- {value}\n"
        for value in [
            "1e-2",
            "4E3",
            "-1.5e+3",
            ".5",
            "5.",
            "30000",
            "-0",
            "+7",
            "1:30",
            "no",
            "On",
            "~",
            "",
            "TRUE",
            "x",
            "017",
            "0o17",
            "0x1F",
            ".inf",
            "-.INF",
            "2026-01-01",
        ]
    )
    path = tmp_path / "values.yaml"
    path.write_text(text)
    values = read_yaml(path)
    expected = YAML(typ="safe", pure=True).load(text)
    assert [(type(value), value) for value in values[:-1]] == [(type(value), value) for value in expected[:-1]]
    assert values[0] == 0.01 and values[-1] == "2026-01-01"  # ruamel.yaml keeps dates


@pytest.mark.parametrize("name", ["1e5", "1_000", "0o17", "017", "1:30", "no", "~", ".inf", "0b1", "2026-01-01", "x"])
def test_text_that_looks_like_something_else_is_read_back_as_text(name: str, tmp_path: Path) -> None:
    """By this project, and by a reader of YAML 1.1."""
    data = DataSettings(dataset="folder", path=name, side=8, channels=1, heldout=1e-5)
    write_data_settings(data, tmp_path)
    assert read_settings(tmp_path / "folder.yaml", DataSettings) == (0, data)
    assert yaml.safe_load((tmp_path / "folder.yaml").read_text())["data"]["path"] == name


@pytest.mark.parametrize("value", ["!!int x", "!!bool x", "!!map [1]", "!mine x", "!!python/object:os.system x"])
def test_a_value_that_is_not_what_its_tag_says_is_one_line(value: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"data: {value}\n")
    with pytest.raises(UserError, match=r"mine.yaml(:1)?: not YAML: ") as error:
        read_experiment(tmp_path / "mine.yaml")
    assert "\n" not in str(error.value)


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


def test_configuration_imports_neither_torch_nor_mlflow() -> None:
    heavy = "('torch', 'mlflow', 'sklearn')"
    code = f"import sys, vaebm.config.pipeline; print([name for name in {heavy} if name in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


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
