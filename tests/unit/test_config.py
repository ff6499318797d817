"""Experiment files: every mistake is one line with file, key, what was expected and what was found."""

import subprocess
import sys
from pathlib import Path

import pytest
from experiments import EXPERIMENTS, written_out
from ruamel.yaml import YAML

from vaebm.config.yaml_files import (
    read_experiment,
    read_yaml,
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
        ("    steps: 4\n", "", "ebm.chain.steps: expected a value, found none"),
        (
            "shards: 1\n",
            "shards: 2000\n",
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
        ("beta1: 0.9", "beta1: 1.0", "ebm.training.beta1: Input should be less than 1, found 1.0"),
        (
            "replay: null",
            "replay: {capacity: 200}",
            "ebm: training.chain_every: expected 1 with replay, found 4; choose one of them",
        ),
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


@pytest.mark.parametrize("value", ["!!int x", "!!bool x", "!!map [1]", "!mine x", "!!python/object:os.system x"])
def test_a_value_that_is_not_what_its_tag_says_is_one_line(value: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"data: {value}\n")
    with pytest.raises(UserError, match=r"mine.yaml(:1)?: not YAML: ") as error:
        read_experiment(tmp_path / "mine.yaml")
    assert "\n" not in str(error.value)


def test_configuration_imports_neither_torch_nor_mlflow() -> None:
    heavy = "('torch', 'mlflow', 'sklearn')"
    code = f"import sys, vaebm.config.pipeline; print([name for name in {heavy} if name in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
