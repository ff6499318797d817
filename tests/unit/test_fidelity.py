"""What samples are measured by in the classifier's features, against computations that share no code with it."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from scipy.linalg import sqrtm

from vaebm.config import EXTRACTORS
from vaebm.data import open_images, write_images
from vaebm.evaluation import reference
from vaebm.evaluation.classifier import Classifier, load_classifier
from vaebm.evaluation.extractors import Extractor
from vaebm.measures import fidelity
from vaebm.measures.fidelity import kid
from vaebm.measures.frechet import Statistics, frechet_distance
from vaebm.system import torchvision_shim
from vaebm.system.checkpoint import save_model
from vaebm.system.device import seeded
from vaebm.system.errors import UserError


def classifier_file(path, seed, further=0):
    """An untrained classifier: any fixed features will do here."""
    with seeded(seed):
        model = Classifier(4, (1, 8, 8), 10, further)
    network = {"channels": 4, "shape": [1, 8, 8], "classes": 10} | ({"further": further} if further else {})
    save_model(path, "classifier", network, model.state_dict())
    return path


def settings_of(folder, name="classifier", weights=None):
    """An extractor's settings file."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"seed": 0, "extractor": {"name": name, "weights": weights and str(weights)}}))
    return path


def data_set(folder, seed):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (160, 8, 8, 1), dtype=np.uint8)
    write_images(
        folder, "noise", images, generator.integers(0, 10, 160), {"train": (0, 100), "heldout": (100, 160)}, {}
    )
    return folder / "manifest.json"


def features(seed, count=400, size=64, scale=1.0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count, size)) @ generator.normal(size=(size, size)) * scale / 8 + generator.normal(
        size=size
    )


@pytest.mark.parametrize("count", [400, 30])
def test_distance_agrees_with_the_matrix_square_root(count):
    """Against ‖Δμ‖² + tr(A + B − 2 (AB)^½) by scipy's sqrtm; 30 images of 64 features give singular covariances."""
    a, b = features(0, count), features(1, count)
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = sqrtm(covariance_a @ covariance_b).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariance_a + covariance_b - 2 * root)
    # zero eigenvalues come out near 1e-15, their roots near 3e-8, for up to 64 of them
    assert frechet_distance(Statistics.of(a), Statistics.of(b)) == pytest.approx(expected, rel=1e-6)


def test_distance_in_closed_form():
    a = features(0)
    shift = np.linspace(-1, 1, 64)
    same, moved, wider = Statistics.of(a), Statistics.of(a + shift), Statistics.of(3 * (a - a.mean(0)) + a.mean(0))
    assert frechet_distance(same, same) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(same, moved) == pytest.approx((shift**2).sum(), rel=1e-6)
    # covariances Σ and 9 Σ commute: tr(Σ + 9 Σ − 2 · 3 Σ) = 4 tr Σ
    assert frechet_distance(same, wider) == pytest.approx(4 * np.trace(same.covariance), rel=1e-6)


def test_kid_agrees_with_brute_force_on_whole_sets():
    """Subsets as large as the sets hold every image, so that each gives the unbiased estimate of the whole."""
    a, b = features(0, 40), features(1, 40)

    def kernel(x, y):
        return (x @ y / 64 + 1) ** 3

    within = sum(kernel(s[i], s[j]) for s in (a, b) for i in range(40) for j in range(40) if i != j) / (40 * 39)
    across = sum(kernel(x, y) for x in a for y in b) / 40**2
    mean, spread = kid(a, b, subsets=3, size=40, seed=1)
    assert mean == pytest.approx(within - 2 * across, rel=1e-10)
    assert spread == pytest.approx(0, abs=1e-9 * abs(mean))


@pytest.mark.parametrize(("subsets", "size"), [(20, 100), (3, 100)])
def test_kid_is_the_mean_of_torch_fidelitys_estimates_over_the_same_subsets(subsets, size):
    """With kernel values that all subsets share (20), and of one subset after the other (3)."""
    a, b = features(0), features(1, 300)
    assert (max(len(a), len(b)) <= size * subsets**0.5) == (subsets == 20)
    random, estimates = np.random.default_rng(5), []
    for _ in range(subsets):
        x, y = (each[random.permutation(len(each))[:size]].astype(np.float64) for each in (a, b))
        kernels = [(one @ other.T / x.shape[1] + 1) ** 3 for one, other in ((x, x), (x, y), (y, y))]
        estimates.append(fidelity.torch_fidelity.metric_kid.mmd2(*kernels))
    found = kid(a, b, subsets, size, seed=5)
    assert found == pytest.approx((np.mean(estimates), np.std(estimates)), rel=1e-9)


def test_kid_uses_the_subsets_that_it_is_told_to():
    """Each setting changes the result, and larger subsets give a steadier one."""
    a, b = features(0), features(1)
    base = kid(a, b, subsets=5, size=100, seed=0)
    assert kid(a, b, subsets=5, size=100, seed=0) == base
    assert kid(a, b, subsets=5, size=100, seed=7) != base
    assert kid(a, b, subsets=6, size=100, seed=0) != base
    # the estimate from larger subsets is steadier
    assert kid(a, b, subsets=20, size=350, seed=0)[1] < kid(a, b, subsets=20, size=20, seed=0)[1] / 2
    with pytest.raises(UserError, match="kid_subset_size: expected at most 400, .* found 401"):
        kid(a, b, subsets=5, size=401, seed=0)


def test_operators_are_declared_only_where_the_compiled_ones_do_not_load(monkeypatch):
    """The declarations exist for the published torchvision on a CPU-only torch; the import above has used them."""
    tried = []
    monkeypatch.setattr(torch.ops, "load_library", tried.append)
    assert torchvision_shim._declare() is None and [path.name.startswith("_C") for path in tried] == [True]

    def fail(path):
        raise OSError("libcudart.so: cannot open shared object file")

    monkeypatch.setattr(torch.ops, "load_library", fail)
    assert not torchvision_shim._compiled_operators_load()


def test_torchvision_alone_does_not_import_torchs_compiler():
    """Without a command, too, and the operator that asks torchvision's question gets its answer."""
    code = """
import sys
import vaebm.measures.fidelity_backend
assert "torch._dynamo.eval_frame" not in sys.modules
found = sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu")
import torch
from torch._dynamo.utils import is_compile_supported
assert found is is_compile_supported("cpu")
assert torch.compile(lambda x: 2 * x, backend="eager")(torch.ones(2)).tolist() == [2, 2]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_extractor_gives_the_features_of_its_own_weights(tmp_path):
    first, second = (Extractor.of("classifier", classifier_file(tmp_path / f"{seed}.pt", seed)) for seed in (0, 1))
    images = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (EXTRACTORS["classifier"].batch + 7, 1, 8, 8), dtype=np.uint8)
    )
    classifier = load_classifier(first.path)
    expected, found = classifier.features(images / 255).numpy(), first.extract(images)
    # whole batches against batches of another size: float32 rounding
    assert found.features.dtype == np.float32 and np.allclose(found.features, expected, atol=1e-5)
    assert found.logits.shape == (len(images), 1, 10) and np.allclose(
        found.logits[:, 0], classifier(images / 255).numpy(), atol=1e-5
    )
    assert first.name != second.name and first.weights[:12] in first.name
    assert not np.allclose(second.extract(images).features, expected, atol=1e-2)
    assert Extractor.of("classifier", first.path).name == first.name, "registered twice without harm"


def test_each_network_of_the_classifier_labels_each_channel(tmp_path):
    extractor = Extractor.of("classifier", classifier_file(tmp_path / "model.pt", 0, further=2))
    stacks = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (9, 3, 8, 8), dtype=np.uint8))
    model, found = load_classifier(extractor.path), extractor.extract(stacks)
    for channel in range(3):
        images = stacks[:, channel : channel + 1] / 255
        expected = model.labels(images, model(images))
        assert found.labels[:, channel].tolist() == expected.tolist()
    assert found.features.shape == (9, 192) and found.labels.shape == (9, 3, 3)
    described = extractor.describe((3, 8, 8))
    assert described.networks == 3 and described.features == 192


def test_a_stack_is_judged_channel_by_channel(tmp_path):
    """Its features are those of its channels side by side, so that distances see how the channels go together."""
    extractor = Extractor.of("classifier", classifier_file(tmp_path / "model.pt", 0))
    stacks = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (9, 3, 8, 8), dtype=np.uint8))
    found = extractor.extract(stacks)
    assert found.features.shape == (9, 192) and found.logits.shape == (9, 3, 10)
    assert np.array_equal(found.labels, found.logits.argmax(axis=2)[:, :, None]), "one network"
    for channel in range(3):
        alone = extractor.extract(stacks[:, channel : channel + 1])
        # batches of another size: float32 rounding
        assert np.allclose(found.features[:, 64 * channel : 64 * (channel + 1)], alone.features, atol=1e-5)
        assert np.allclose(found.logits[:, channel], alone.logits[:, 0], atol=1e-5)
    assert extractor.describe((3, 8, 8)).features == 192 and extractor.describe((1, 8, 8)).features == 64
    with pytest.raises(
        UserError,
        match=r"expected a classifier of images \(1, 16, 16\) or of their channels, found one of images \(1, 8, 8\)",
    ):
        extractor.extract(torch.zeros(2, 1, 16, 16, dtype=torch.uint8))


def test_inception_score_by_hand():
    """exp of the mean divergence from the mean prediction, part by part; and its two ends."""
    logits = np.random.default_rng(0).normal(size=(30, 5)) * 2
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    scores = [
        np.exp(np.mean([sum(q * np.log(q / m) for q, m in zip(row, part.mean(0), strict=True)) for row in part]))
        for part in (p[:10], p[10:20], p[20:])
    ]
    assert fidelity.inception_score(logits, 3) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-9)
    certain = 50 * np.eye(5)[np.arange(20) % 5]
    assert fidelity.inception_score(certain, 2)[0] == pytest.approx(5), "every class, each as often, none in doubt"
    assert fidelity.inception_score(np.tile(certain[:1], (20, 1)), 2)[0] == pytest.approx(1), "always the same class"


def test_reference_holds_what_real_images_score(tmp_path):
    manifest, model = data_set(tmp_path / "data", 0), classifier_file(tmp_path / "model.pt", 0)
    reference.write_reference(settings_of(tmp_path), manifest, model, tmp_path / "reference.npz")
    images, extractor = open_images(manifest), Extractor.of("classifier", model)
    found = reference.read_reference(tmp_path / "reference.npz", images.hash, extractor.weights)
    train, held_out = (extractor.extract(images.split(split)[0]).features for split in ("train", "heldout"))
    assert np.array_equal(found.train_features, train) and np.array_equal(found.heldout_features, held_out)
    # sums in another order, in double precision
    assert np.allclose(found.train.mean, train.astype(float).mean(0), rtol=1e-12) and np.allclose(
        found.heldout.covariance, np.cov(held_out, rowvar=False), 1e-10
    )
    assert found.real == frechet_distance(Statistics.of(held_out), Statistics.of(train)) > 0


def test_reference_of_an_earlier_version_has_no_features_of_held_out_images(tmp_path, capsys):
    manifest, model = data_set(tmp_path / "data", 0), classifier_file(tmp_path / "model.pt", 0)
    reference.write_reference(settings_of(tmp_path), manifest, model, tmp_path / "new.npz")
    with np.load(tmp_path / "new.npz") as content:
        np.savez(
            tmp_path / "old.npz", **{key: content[key] for key in content if key not in ("heldout_features", "hash")}
        )
        found = reference.read_reference(tmp_path / "old.npz", str(content["data"]), str(content["weights"]))
    assert found.heldout_features.shape == (0, 64) and len(found.train_features) == 100


def test_reference_of_other_data_or_weights_is_refused(tmp_path):
    manifest, model = data_set(tmp_path / "data", 0), classifier_file(tmp_path / "model.pt", 0)
    path = tmp_path / "reference.npz"
    reference.write_reference(settings_of(tmp_path), manifest, model, path)
    data, weights = open_images(manifest).hash, Extractor.of("classifier", model).weights
    other = open_images(data_set(tmp_path / "other", 1)).hash
    with pytest.raises(UserError, match=f"statistics of data {other[:12]}, found those of {data[:12]}"):
        reference.read_reference(path, other, weights)
    other_weights = Extractor.of("classifier", classifier_file(tmp_path / "other.pt", 1)).weights
    with pytest.raises(UserError, match=f"statistics of weights {other_weights[:12]}, found those of {weights[:12]}"):
        reference.read_reference(path, data, other_weights)


def test_a_missing_or_damaged_reference_is_one_line(tmp_path):
    with pytest.raises(UserError, match="found no file"):
        reference.read_reference(tmp_path / "none.npz", "a", "b")
    manifest, model = data_set(tmp_path / "data", 0), classifier_file(tmp_path / "model.pt", 0)
    reference.write_reference(settings_of(tmp_path), manifest, model, tmp_path / "whole.npz")
    whole = (tmp_path / "whole.npz").read_bytes()
    for name, content in {"text": b"no statistics", "empty": b"", "half": whole[: len(whole) // 2]}.items():
        (tmp_path / f"{name}.npz").write_bytes(content)
        with pytest.raises(UserError, match="damaged") as error:
            reference.read_reference(tmp_path / f"{name}.npz", "a", "b")
        assert "\n" not in str(error.value)
