"""Our measures next to independent programs on the same images and random weights (docs/measurements/agreement.md).

pytorch-fid, clean-fid, prdc and timm are packages of the extra `dev`. Networks are small, or cut off.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from weight_files import random_inception, reduced_dinov2

from vaebm.evaluation import extractors
from vaebm.evaluation.dinov2 import normalised, resized
from vaebm.evaluation.extractors import Extractor
from vaebm.measures import fidelity
from vaebm.measures.frechet import Statistics, frechet_distance

# isort: split
# after the declaration of torchvision's operators
import cleanfid.fid
import cleanfid.resize
import pytorch_fid.inception
import timm
import torchvision.transforms as T
from PIL import Image
from pytorch_fid import fid_score
from timm.models.vision_transformer import checkpoint_filter_fn

RANDOM = np.random.default_rng(0)
FEATURES = RANDOM.normal(size=(300, 64)), RANDOM.normal(0.1, 1.1, size=(260, 64))
NOISE = torch.from_numpy(RANDOM.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8))
CHANNELS = 192
"""Features of InceptionV3 after its second pooling."""
ROUNDING = 1e-6
"""Largest difference of features in single precision, relative to the largest one: eight times its precision. Two
programs on one machine have equal ones, unless their sums run in another order.
"""


def difference(a: object, b: object) -> float:
    """Largest difference, relative to the largest value."""
    one, other = np.asarray(a), np.asarray(b)
    return float(np.abs(one - other).max() / np.abs(other).max())


class Standardised(nn.Module):
    """pytorch-fid's network with the input of TensorFlow's graph, (x − 128) / 128 instead of 2 x / 255 − 1."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return self.network((255 * x - 128) / 128)


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """Random weights of InceptionV3 in the file that both programs read, images of its size, and their features."""
    folder = tmp_path_factory.mktemp("inception")
    with random_inception(folder / "weights.pth"):
        extractor = Extractor.of("inception", folder / "weights.pth")
        low = RANDOM.integers(0, 256, (2, 14, 23, 23, 3), dtype=np.uint8)
        images = low.repeat(13, axis=2).repeat(13, axis=3) // np.array([1, 2]).reshape(2, 1, 1, 1, 1).astype(np.uint8)
        for name, group in zip("ab", images, strict=True):
            (folder / name).mkdir()
            for index, one in enumerate(group):
                Image.fromarray(one).save(folder / name / f"{index}.png")
        groups = [torch.from_numpy(group).permute(0, 3, 1, 2) for group in images]
        yield folder, groups, [extractor._layers(group, [str(CHANNELS)])[0] for group in groups]


def pytorch_fids(folder, monkeypatch, normalize_input: bool) -> nn.Module:
    """pytorch-fid's network up to 192 features with the weights of the file."""
    weights = torch.load(folder / "weights.pth")
    monkeypatch.setattr(pytorch_fid.inception, "load_state_dict_from_url", lambda *_, **__: weights)
    network = pytorch_fid.inception.InceptionV3([1], resize_input=False, normalize_input=normalize_input).eval()
    return network if normalize_input else Standardised(network)


def test_fid_is_that_of_pytorch_fid(inception, monkeypatch):
    """Same features, and the same distance of equal ones; on its own scale of the input, 255 → 1 instead of 127/128,
    2.3 % apart.
    """
    folder, _, features = inception
    groups = [sorted((folder / name).iterdir(), key=lambda path: int(path.stem)) for name in "ab"]
    arguments = {"batch_size": 14, "dims": CHANNELS, "device": "cpu", "num_workers": 0}

    def theirs(network):
        found = [fid_score.calculate_activation_statistics(group, network, **arguments) for group in groups]
        return fid_score.calculate_frechet_distance(*found[0], *found[1])

    ours, network = frechet_distance(*map(Statistics.of, features)), pytorch_fids(folder, monkeypatch, False)
    activations = [fid_score.get_activations(group, network, **arguments) for group in groups]
    assert all(difference(*pair) < ROUNDING for pair in zip(activations, features, strict=True))
    # both in double precision, by different matrix square roots
    assert theirs(network) == pytest.approx(frechet_distance(*map(Statistics.of, activations)), rel=1e-9)
    assert theirs(pytorch_fids(folder, monkeypatch, True)) / ours == pytest.approx(1.023, abs=1e-3)


def test_fid_is_that_of_torch_fidelitys_own_program(inception):
    """It reads the files itself. Network and distance are torch-fidelity's on both sides, as in our FID and KID: this
    test is of what is between them. Independent programs are pytorch-fid and clean-fid.
    """
    folder, _, features = inception
    found = extractors.torch_fidelity.calculate_metrics(
        input1=str(folder / "a"), input2=str(folder / "b"), fid=True, feature_layer_fid=str(CHANNELS), cuda=False,
        feature_extractor_weights_path=str(folder / "weights.pth"), cache=False, verbose=False,
    )  # fmt: skip
    ours = frechet_distance(*map(Statistics.of, features))
    single = [Statistics(one.mean(axis=0), np.cov(one, rowvar=False)) for one in features]
    # its means are in single precision, which has a relative error of 6e-8
    assert found["frechet_inception_distance"] == pytest.approx(frechet_distance(*single), rel=1e-9)
    assert found["frechet_inception_distance"] == pytest.approx(ours, rel=2e-7)


def test_distances_of_features_are_those_of_other_programs():
    """Fréchet distance by clean-fid and pytorch-fid, KID by clean-fid and by torch-fidelity with its own kernel."""
    ours = [Statistics.of(one) for one in FEATURES]
    for theirs in (cleanfid.fid.frechet_distance, fid_score.calculate_frechet_distance):
        assert frechet_distance(*ours) == pytest.approx(theirs(*ours[0], *ours[1]), rel=1e-9)
    first, second = FEATURES[0][:260], FEATURES[1]
    kernel = cleanfid.fid.kernel_distance(first, second, num_subsets=1, max_subset_size=260)
    pair = [torch.from_numpy(each).double() for each in (first, second)]
    whole = fidelity.torch_fidelity.metric_kid.kid_features_to_metric(
        *pair, kid_subsets=1, kid_subset_size=260, verbose=False
    )
    for theirs in (kernel, whole["kernel_inception_distance_mean"]):
        assert fidelity.kid(first, second, 1, 260, 0)[0] == pytest.approx(theirs, rel=1e-9)


def test_resizing_is_that_of_clean_fid_and_of_torchvision():
    """Pillow's bicubic with antialiasing to grey levels; of clean-fid with `quantize_after`."""
    ours = resized(NOISE).permute(0, 2, 3, 1).numpy()
    resize = cleanfid.resize.make_resizer("PIL", True, "bicubic", (224, 224))
    pictures = [one.permute(1, 2, 0).numpy() for one in NOISE]
    assert np.array_equal(ours, [resize(one) for one in pictures])
    larger = torch.from_numpy(RANDOM.integers(0, 256, (1, 3, 300, 270), dtype=np.uint8))
    assert np.array_equal(resized(larger)[0].permute(1, 2, 0), resize(larger[0].permute(1, 2, 0).numpy()))
    bicubic = T.Resize((224, 224), T.InterpolationMode.BICUBIC)
    assert np.array_equal(ours, [np.asarray(bicubic(Image.fromarray(one))) for one in pictures])


def test_dinov2s_input_is_that_of_torchvision_step_by_step():
    """Resize, ToTensor, Normalize of a picture, as dgm-eval prepares it; a grey one is repeated in three channels."""
    scaled = [T.ToTensor()(Image.fromarray(one.permute(1, 2, 0).numpy())) for one in resized(NOISE)]
    assert torch.equal(torch.stack(scaled), resized(NOISE).float() / 255)
    normalise = T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert torch.equal(torch.stack(list(map(normalise, scaled))), normalised(resized(NOISE)))
    grey = Image.fromarray(NOISE[0, 0].numpy()).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
    assert np.array_equal(resized(NOISE[:1, :1])[0].permute(1, 2, 0), grey)


def test_dinov2s_features_are_those_of_timm(tmp_path, monkeypatch):
    """At 518×518 with the file as it is, at 224×224 with the same positions; timm resamples these in another way."""
    network, path = reduced_dinov2(monkeypatch, tmp_path / "weights.pth")
    sizes = {"embed_dim": 64, "depth": 2, "num_heads": 4}

    def features_of_timm(images, state, size):
        model = timm.create_model("vit_large_patch14_dinov2.lvd142m", pretrained=False, img_size=size, **sizes)
        model.load_state_dict(checkpoint_filter_fn(dict(state), model))
        with torch.no_grad():
            return model.eval()(images)

    state, large = torch.load(path), torch.randn(2, 3, 518, 518)
    assert difference(network(large), features_of_timm(large, state, 518)) < ROUNDING
    images = normalised(resized(NOISE))
    ours = network(images)
    positions = {"pos_embed": network.positions(16)}
    assert difference(ours, features_of_timm(images, state | positions, 224)) < ROUNDING
    assert difference(ours, features_of_timm(images, state, 224)) == pytest.approx(6.8e-4, rel=0.05)
