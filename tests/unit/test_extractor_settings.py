"""Which extractor an experiment asks for: what fits its images, where weights stand, and what depends on that."""

import re
from pathlib import Path

import pytest

from vaebm.config import Experiment
from vaebm.config.evaluation import EvaluationSettings, ExtractorSettings
from vaebm.config.weights import weights_hash
from vaebm.config.yaml_files import read_experiment, read_settings, write_settings
from vaebm.records.metrics import FD, FD_HELDOUT, FD_STRETCHED, IS, KID, PRECISION, RECALL
from vaebm.report.paper import read_paper
from vaebm.system.errors import UserError

EXPERIMENTS = Path(__file__).parents[2] / "config" / "experiments"


def experiment(dataset: str, extractor: str, classifier: bool, **paths: str) -> Experiment:
    """The digits' experiment on other data, measured with another extractor."""
    content = read_experiment(EXPERIMENTS / "digits.yaml").model_dump(exclude_none=True)
    content["data"] = {"dataset": dataset}
    evaluation = content["evaluation"] | {"extractor": extractor, "ood": [], **paths}
    content["evaluation"] = {key: value for key, value in evaluation.items() if classifier or key != "classifier"}
    return Experiment.model_validate(content)


@pytest.mark.parametrize(
    ("dataset", "extractor", "classifier", "paths"),
    [
        ("digits", "classifier", True, {}),
        ("stacked_digits", "classifier", True, {}),
        ("stacked_mnist", "inception", True, {}),
        ("cifar10", "inception", False, {}),
        ("celeba64", "inception", False, {"inception_weights": "~/inception.pth"}),
        ("cifar10", "resnet56", False, {"resnet56_weights": "resnet56.th"}),
        ("stacked_mnist", "resnet56", True, {"resnet56_weights": "resnet56.th"}),
    ],
)
def test_what_fits(dataset: str, extractor: str, classifier: bool, paths: dict[str, str]) -> None:
    assert experiment(dataset, extractor, classifier, **paths).evaluation is not None


@pytest.mark.parametrize(
    ("dataset", "extractor", "classifier", "paths", "message"),
    [
        (
            "digits",
            "classifier",
            False,
            {},
            "evaluation.classifier: expected its settings, which the extractor classifier needs, found none",
        ),
        (
            "stacked_mnist",
            "inception",
            False,
            {},
            "evaluation.classifier: expected its settings, which the modes of stacks need, found none",
        ),
        ("cifar10", "inception", True, {}, "evaluation.classifier: the extractor inception needs none; leave it out"),
        (
            "cifar10",
            "resnet56",
            False,
            {},
            "evaluation.resnet56_weights: expected the path of a checkpoint, found none",
        ),
        (
            "cifar10",
            "inception",
            False,
            {"resnet56_weights": "resnet56.th"},
            "evaluation.resnet56_weights: only the extractor resnet56 has them, "
            "found the extractor inception; leave it out",
        ),
        (
            "digits",
            "inception",
            False,
            {},
            r"evaluation.extractor: inception is made for 3 colours, the images have 1 channel\(s\)",
        ),
        (
            "celeba64",
            "resnet56",
            False,
            {"resnet56_weights": "resnet56.th"},
            r"evaluation.extractor: resnet56 is made for 32×32 images of 3 colours, "
            r"the images are 64×64 with 3 channel\(s\)",
        ),
    ],
)
def test_what_does_not_fit(dataset: str, extractor: str, classifier: bool, paths: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        experiment(dataset, extractor, classifier, **paths)


def test_where_weights_stand_is_no_setting_of_a_figure(tmp_path: Path) -> None:
    """The path enters neither the experiment's hash nor the evaluation's settings, only the extractor's file."""
    here, there = (
        experiment("cifar10", "resnet56", False, resnet56_weights=f"{place}/resnet56.th") for place in ("here", "there")
    )
    assert here.hash() == there.hash() != experiment("cifar10", "inception", False).hash()
    for one in (here, there):
        write_settings(one, tmp_path, [0])
        written = (tmp_path / "vaebm" / "seed0" / "evaluation" / "evaluation.yaml").read_text()
        assert "resnet56.th" not in written and "extractor: resnet56" in written
        if one is here:
            first = written
    assert written == first
    settings = read_settings(tmp_path / "reference" / "resnet56.yaml", ExtractorSettings)[1]
    assert settings == ExtractorSettings(name="resnet56", weights="there/resnet56.th")
    assert (
        read_settings(tmp_path / "vaebm" / "seed0" / "evaluation" / "evaluation.yaml", EvaluationSettings)[
            1
        ].extractor.name
        == "resnet56"
    )


def test_weights_are_known_by_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "resnet56.th").write_bytes(b"abc")
    monkeypatch.setenv("HOME", str(tmp_path))
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert weights_hash("resnet56", tmp_path / "resnet56.th") == weights_hash("resnet56", "~/resnet56.th") == known
    with pytest.raises(UserError, match="expected the weights of resnet56, found Is a directory"):
        weights_hash("resnet56", tmp_path)


def test_only_inception_makes_an_fid() -> None:
    figures = (FD, KID, IS, PRECISION, RECALL)
    assert [figure.named("inception") for figure in figures] == ["FID", "KID", "IS", "precision", "recall"]
    assert [figure.named("resnet56") for figure in figures] == [
        "FD-resnet56",
        "KID-resnet56",
        "IS-resnet56",
        "precision-resnet56",
        "recall-resnet56",
    ]
    names = [distance.named("inception") for distance in (FD_HELDOUT, FD_STRETCHED)]
    assert names == ["FID-heldout", "FID-stretched"]


def test_papers_experiments_are_measured_as_it_did() -> None:
    """FID and IS of 50,000 samples; for the stacks 26,000 samples and a classifier of single digits."""
    names = {path.stem for path in EXPERIMENTS.glob("*.yaml") if read_experiment(path).missing}
    assert names == {"nvae_mnist", "nvae_cifar10"}
    for name in ("cifar10", "celeba64", "lsun_church64", "celebahq256"):
        content = read_experiment(EXPERIMENTS / f"{name}.yaml")
        assert content.evaluation is not None and content.samples is not None and content.resources.evaluation.gpu == 1
        assert (
            content.evaluation.extractor.name,
            content.evaluation.inception_splits,
            content.evaluation.classifier,
        ) == (
            "inception",
            10,
            None,
        )
        assert (content.samples.count, content.samples.stretch) == (50_000, False)
    for name in ("stacked_mnist", "stacked_mnist_cpu"):
        stacks = read_experiment(EXPERIMENTS / f"{name}.yaml")
        assert stacks.evaluation is not None and stacks.samples is not None
        found = (stacks.evaluation.extractor.name, stacks.samples.count, stacks.classifier_data)
        assert found == ("classifier", 26_000, "mnist")


def test_metrics_of_the_papers_rows_are_those_that_an_evaluation_writes() -> None:
    """The names in config/paper.yaml of rows that the Inception experiments answer."""
    tables = read_paper(EXPERIMENTS.parent / "paper.yaml").tables
    rows = [row for table in tables for row in table.rows if row.answer and row.answer.experiment != "stacked_mnist"]
    asked = {metric for row in rows for metric in row.figures}
    written = {figure.named("inception") for figure in (FD, IS, RECALL)}
    assert {metric for metric in asked if re.match("FID|IS|recall", metric)} == written
