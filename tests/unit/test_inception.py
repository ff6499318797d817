"""The path of an FID through InceptionV3 in torch-fidelity, with RANDOM weights; no value here is an FID.

The seam is `weights.INCEPTION_SHA256`, the start of the standard file's hash. Inception takes about 1 s per image.
"""

import hashlib
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy.linalg import sqrtm
from weight_files import INCEPTION, random_inception

from vaebm.config import weights
from vaebm.data import open_images, write_images
from vaebm.evaluation import extractors
from vaebm.evaluation.extractors import Extractor, open_extractor
from vaebm.evaluation.reference import read_reference
from vaebm.evaluation.reference import write_reference as make_reference
from vaebm.measures import fidelity
from vaebm.measures.frechet import Statistics, frechet_distance
from vaebm.measures.neighbours import TrainingImages, find_neighbours
from vaebm.system.errors import UserError

RANDOM = np.random.default_rng(0)
STANDARD = weights.INCEPTION_SHA256
TRAIN, HELD_OUT = 10, 4
IMAGES = RANDOM.integers(0, 256, (TRAIN + HELD_OUT, 8, 8, 3), dtype=np.uint8)
SAMPLES = torch.from_numpy(RANDOM.integers(60, 256, (8, 3, 8, 8), dtype=np.uint8))


@pytest.fixture(scope="module")
def random_file(tmp_path_factory: pytest.TempPathFactory):
    """A file of random weights with all names and shapes of the standard one, whose hash is patched in."""
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    with random_inception(path):
        yield path


@pytest.fixture(scope="module")
def extractor(random_file):
    return Extractor.of("inception", random_file)


@pytest.fixture(scope="module")
def judged(extractor):
    return extractor.extract(SAMPLES)


@pytest.fixture(scope="module")
def write_reference(random_file, tmp_path_factory):
    """The data's images and the file with the statistics of their features."""
    folder = tmp_path_factory.mktemp("data")
    write_images(
        folder,
        "noise",
        IMAGES,
        np.zeros(len(IMAGES), np.int64),
        {"train": (0, TRAIN), "heldout": (TRAIN, TRAIN + HELD_OUT)},
        {},
    )
    (folder / "inception.yaml").write_text(
        yaml.safe_dump({"seed": 0, "extractor": {"name": "inception", "weights": str(random_file)}})
    )
    make_reference(folder / "inception.yaml", folder / "manifest.json", None, folder / "inception.npz")
    return open_images(folder / "manifest.json"), folder / "inception.npz"


def test_features_are_those_of_the_module_called_directly(random_file, extractor, judged):
    layers = ["2048", "logits_unbiased"]
    direct = INCEPTION.FeatureExtractorInceptionV3("direct", layers, feature_extractor_weights_path=random_file)
    features, logits = direct(SAMPLES)
    assert judged.features.shape == (8, 2048) and np.array_equal(judged.features, features.numpy())
    assert judged.logits.shape == (8, 1, 1008) and np.array_equal(judged.logits[:, 0], logits.numpy())
    # what the inception score is of: the last layer without its bias
    without_bias = judged.features.astype(np.float64) @ torch.load(random_file)["fc.weight"].numpy().T.astype(
        np.float64
    )
    assert np.allclose(judged.logits[:, 0], without_bias, rtol=1e-4, atol=1e-4 * np.abs(without_bias).max())
    assert (
        extractor.describe((3, 8, 8)).features == 2048
        and extractor.name == f"inception-{hashlib.sha256(random_file.read_bytes()).hexdigest()[:12]}"
    )


def test_reference_is_in_single_precision_and_its_statistics_are_in_double(extractor, write_reference):
    images, path = write_reference
    found = read_reference(path, images.hash, extractor.weights)
    assert found.train_features.dtype == np.float32 and found.train_features.shape == (TRAIN, 2048)
    train = found.train_features.astype(np.float64)
    assert np.allclose(found.train.mean, train.mean(0), rtol=1e-12) and found.train.covariance.dtype == np.float64
    expected = np.cov(train, rowvar=False)
    assert np.allclose(found.train.covariance, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    assert found.heldout.mean.shape == (2048,) and found.real > 0


def test_measures_of_its_features_agree_with_independent_computations(extractor, write_reference, judged):
    """Fréchet distance by the matrix square root, KID and k-NN balls by brute force, the score by hand."""
    images, path = write_reference
    found = read_reference(path, images.hash, extractor.weights)
    samples, real = (features.astype(np.float64) for features in (judged.features, found.train_features))

    # both sets lie in the span of their 18 features, in which sqrtm takes no hour: an isometry changes no distance
    basis = np.linalg.qr(np.concatenate([samples, real]).T)[0]
    a, b = samples @ basis, real @ basis
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = sqrtm(covariance_a @ covariance_b).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariance_a + covariance_b - 2 * root)
    # of 2,048 eigenvalues all but 7 are 0, and come out as rounding errors, whose square roots are added up
    assert frechet_distance(Statistics.of(judged.features), found.train) == pytest.approx(expected, rel=1e-4)

    def kernel(x, y):
        return (x @ y / 2048 + 1) ** 3

    size = len(samples)
    pairs = [(i, j) for i in range(size) for j in range(size) if i != j]
    within = sum(kernel(s[i], s[j]) for s in (samples, real[:size]) for i, j in pairs) / len(pairs)
    across = sum(kernel(x, y) for x in samples for y in real[:size]) / size**2
    assert fidelity.kid(judged.features, found.train_features[:size], 2, size, 0)[0] == pytest.approx(
        within - 2 * across, rel=1e-6
    )

    def share(points, centres):
        radii = [sorted(np.linalg.norm(centre - other) for other in centres)[3] for centre in centres]
        return np.mean(
            [
                any(np.linalg.norm(point - centre) <= radius for centre, radius in zip(centres, radii, strict=True))
                for point in points
            ]
        )

    near = find_neighbours(judged.features, TrainingImages(found.train_features, len(real), 3), found.heldout_features)
    assert (np.mean(near.inside > 0), near.recalled.mean()) == (share(samples, real), share(real, samples))

    logits = judged.logits[:, 0].astype(np.float64)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    scores = [np.exp(np.mean((part * (np.log(part) - np.log(part.mean(0)))).sum(1))) for part in (p[:4], p[4:])]
    assert fidelity.inception_score(judged.logits[:, 0], 2) == pytest.approx(
        (np.mean(scores), np.std(scores)), rel=1e-6, abs=1e-9
    )


def test_images_may_have_any_size_but_three_colours(extractor):
    assert extractor.depth((3, 256, 256)) == 1
    with pytest.raises(UserError, match=r"inception is made for images \(3,\), found \(1, 8, 8\)"):
        extractor.extract(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))


def test_another_file_is_refused_before_it_is_read(tmp_path, monkeypatch):
    """With the hash that the program comes with."""
    monkeypatch.setattr(weights, "INCEPTION_SHA256", STANDARD)
    assert weights.INCEPTION_URL.endswith(f"-{weights.INCEPTION_SHA256}.pth"), "the file's name says it"
    assert weights.INCEPTION_URL == INCEPTION.URL_INCEPTION_V3
    path = tmp_path / "weights.pth"
    path.write_bytes(b"no weights at all")
    begins = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    with pytest.raises(
        UserError,
        match=f"{path}: expected the weights of inception, whose SHA-256 begins 6726825d, found {begins}; "
        "the file is at https",
    ):
        Extractor.of("inception", path)
    with pytest.raises(
        UserError,
        match=r"none.pth: expected the weights of inception, found No such file.*; "
        r"evaluation.inception_weights names the file",
    ):
        Extractor.of("inception", tmp_path / "none.pth")


def test_a_file_that_would_run_something_is_not_read(tmp_path, monkeypatch):
    """Eight digits of a hash can be forged, and torch-fidelity reads with pickle."""
    path = tmp_path / "weights.pth"
    torch.save({"conv": Path("program")}, path)
    monkeypatch.setattr(weights, "INCEPTION_SHA256", hashlib.sha256(path.read_bytes()).hexdigest()[:8])
    with pytest.raises(UserError, match="found an object of pathlib.* in it, which is not read"):
        Extractor.of("inception", path)


def test_without_a_path_the_weights_are_fetched_once(tmp_path, monkeypatch):
    """Into torch's cache, by a hash; without a network one line names both ways on."""
    monkeypatch.setattr(weights, "INCEPTION_SHA256", STANDARD)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    asked = []

    def unreachable(*arguments, **keywords):
        asked.append((arguments, keywords["hash_prefix"]))
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    settings = tmp_path / "inception.yaml"
    settings.write_text("seed: 0\nextractor:\n  name: inception\n  weights: null\n")
    with pytest.raises(
        UserError,
        match=r"no way to them .*no route.*; .*evaluation.inception_weights, or choose evaluation.extractor .*resnet56",
    ) as error:
        open_extractor(settings, None)
    assert "\n" not in str(error.value)
    place = tmp_path / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    assert asked == [((weights.INCEPTION_URL, str(place)), "6726825d")]

    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, to, **_: Path(to).write_bytes(b"fetched"))
    assert extractors.download_weights("inception") == place and place.read_bytes() == b"fetched"
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    assert extractors.download_weights("inception") == place, "not again"
