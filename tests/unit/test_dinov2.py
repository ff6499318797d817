"""The path of FD-DINOv2 through the ViT-L/14, with RANDOM weights and fewer channels and blocks; no value is one.

Features and preprocessing are compared with other programs in tests/parity/test_agreement.py.
"""

import hashlib
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from weight_files import reduced_dinov2

from vaebm.config import Experiment, weights
from vaebm.config.evaluation import EXTRACTORS, EvaluationSettings
from vaebm.config.yaml_files import read_experiment, write_settings
from vaebm.evaluation import dinov2
from vaebm.evaluation.extractors import open_extractor
from vaebm.system.errors import UserError

ROOT = Path(__file__).parents[2]
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8), dtype=np.uint8))


@pytest.fixture
def random_file(tmp_path, monkeypatch):
    return reduced_dinov2(monkeypatch, tmp_path / "random.pth")[1]


def settings(path, **extractor):
    """Settings file of the extractor, next to its weights."""
    content = {"seed": 0, "extractor": {"name": "DINOv2", "weights": path and str(path), **extractor}}
    file = path.with_name("DINOv2.yaml")
    file.write_text(yaml.safe_dump(content))
    return file


def test_network_is_the_vit_l_14():
    """304 million parameters, as published; the file has four bytes for each and less than 1 ‰ more."""
    with torch.device("meta"):
        network = dinov2.DINOv2()
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == 304_368_640 and 0 < 1_217_586_395 / (4 * count) - 1 < 1e-3
    assert EXTRACTORS["DINOv2"].features == dinov2.WIDTH == 1024


def test_positions_are_resampled_as_published(random_file):
    """Keys' cubic kernel with a = −0.75 at steps of 37 / 16.1, not of 37 / 16, without antialiasing."""
    network = dinov2.load_dinov2(random_file)
    grid = network.pos_embed[0, 1:].double().numpy().reshape(37, 37, -1)

    def weight(x, a=-0.75):
        x = abs(x)
        inner = (a + 2) * x**3 - (a + 3) * x**2 + 1
        return inner if x <= 1 else a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    mix = np.zeros((16, 37))
    for place in range(16):
        centre = (place + 0.5) * 37 / 16.1 - 0.5
        for source in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            mix[place, min(max(source, 0), 36)] += weight(centre - source)
    expected = np.einsum("ia,jb,abc->ijc", mix, mix, grid)
    found = network.positions(16)
    assert torch.equal(found[:, 0], network.pos_embed[:, 0])
    assert np.allclose(found[0, 1:].numpy().reshape(expected.shape), expected, atol=1e-5)


def test_features_of_a_file(random_file):
    """The class token; no classes; grey images have three equal channels; the name has the hash of the file."""
    extractor = open_extractor(settings(random_file), None)
    found, network = extractor.extract(IMAGES), dinov2.load_dinov2(random_file)
    assert np.array_equal(found.features, network.features(IMAGES).numpy()) and found.features.shape == (3, 64)
    assert found.logits.shape == (3, 0, 0)
    assert np.array_equal(extractor.features(IMAGES[:, :1]), extractor.features(IMAGES[:, :1].expand(-1, 3, -1, -1)))
    digest = hashlib.sha256(random_file.read_bytes()).hexdigest()
    assert (extractor.name, extractor.weights) == (f"DINOv2-{digest[:12]}", digest)
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in network.parameters())


def test_other_weights_than_the_published_are_named_unless_stated(random_file, capsys):
    open_extractor(settings(random_file), None)
    assert "warning: " in (said := capsys.readouterr().err) and "not the published weights" in said
    digest = hashlib.sha256(random_file.read_bytes()).hexdigest()
    open_extractor(settings(random_file, sha256=digest), None)
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match=f"random.pth: expected the weights of DINOv2 with SHA-256 0+, found {digest}"):
        open_extractor(settings(random_file, sha256="0" * 64), None)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda state: b"no weights", "found a damaged file or one of another kind"),
        (lambda state: {"conv1.weight": torch.zeros(3)}, "found no blocks.0.attn.proj.bias in it"),
        (lambda state: state | {"register_tokens": torch.zeros(1, 4, 64)}, "found also register_tokens in it"),
        (lambda state: state | {"norm.bias": torch.zeros(32)}, r"with norm.bias \(64,\), found \(32,\)"),
        (lambda state: {"model": Path()}, "found an object of pathlib.* in it, which is not read"),
    ],
)
def test_foreign_files_are_one_line(random_file, harm, message):
    content = harm(torch.load(random_file))
    random_file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, random_file)
    with pytest.raises(
        UserError, match=f"random.pth: expected the state dict of DINOv2's ViT-L/14.* {message}"
    ) as error:
        open_extractor(settings(random_file), None).features(IMAGES)
    assert "\n" not in str(error.value)


def test_without_a_path_the_weights_are_fetched_once(tmp_path, monkeypatch):
    """Into the place where torch.hub keeps them, by their hash; without a network one line names both ways on."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    asked = []

    def unreachable(*arguments, **keywords):
        asked.append((arguments, keywords["hash_prefix"]))
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    file = tmp_path / "DINOv2.yaml"
    file.write_text("seed: 0\nextractor:\n  name: DINOv2\n  weights: null\n")
    both = "no way to them .*no route.*evaluation.dinov2_weights, or choose evaluation.extractor .*resnet56"
    with pytest.raises(UserError, match=both) as error:
        open_extractor(file, None)
    assert "\n" not in str(error.value)
    place = tmp_path / "hub" / "checkpoints" / "dinov2_vitl14_pretrain.pth"
    assert asked == [((weights.DINOV2_URL, str(place)), weights.DINOV2_SHA256)]
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, to, **_: reduced_dinov2(monkeypatch, Path(to)))
    first = open_extractor(file, None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    assert open_extractor(file, None).weights == first.weights, "not again"


def test_experiment_with_further_extractors(tmp_path):
    """One settings file for each; paths and stated hashes are no settings of a figure; none is the default."""

    def digits(**evaluation):
        content = read_experiment(ROOT / "config/experiments/digits.yaml").model_dump(exclude_none=True)
        return Experiment.model_validate(content | {"evaluation": content["evaluation"] | evaluation})

    plain, here = digits(), digits(further_extractors=["DINOv2"], dinov2_weights="here.pth")
    there = digits(further_extractors=[{"name": "DINOv2", "weights": "there.pth", "sha256": "0" * 64}])
    assert plain.hash() != here.hash() == there.hash()
    write_settings(there, tmp_path, [0])
    written = (tmp_path / "vaebm/seed0/evaluation/evaluation.yaml").read_text()
    assert "further_extractors" in written and "there.pth" not in written and "0000" not in written
    assert {path.stem for path in (tmp_path / "reference").iterdir()} == {"classifier", "DINOv2"}
    assert "there.pth" in (tmp_path / "reference/DINOv2.yaml").read_text()
    write_settings(plain, tmp_path / "plain", [0])
    assert "further" not in (tmp_path / "plain/vaebm/seed0/evaluation/evaluation.yaml").read_text()
    assert digits(further_extractors=["DINOv2"]).evaluation.extractions["DINOv2"].weights is None
    for wrong, message in (
        ({"further_extractors": ["DINOv2", "DINOv2"]}, "each extractor at most once, found classifier, DINOv2, DINOv2"),
        ({"further_extractors": ["classifier"]}, "each extractor at most once, found classifier, classifier"),
        (
            {"dinov2_weights": "here.pth"},
            "dinov2_weights: only the extractor DINOv2 has them, found the extractor clas",
        ),
        ({"further_extractors": ["inception"]}, "inception is made for 3 colours"),
    ):
        with pytest.raises(ValueError, match=message):
            digits(**wrong)
    later = EvaluationSettings.model_fields
    assert all(later[name].exclude_if is not None for name in ("further_extractors", "dinov2_weights"))
