"""What stands where in the pictures of a run."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from vaebm.config import LangevinSettings
from vaebm.config.evaluation import SamplesSettings
from vaebm.evaluation import plots
from vaebm.evaluation.detection import measure_ood
from vaebm.plots import BACKGROUND, charts
from vaebm.records.results import AlongChain


def test_nearest_are_those_at_the_smallest_distance():
    random = np.random.default_rng(0)
    queries, among = random.normal(size=(5, 3)), random.normal(size=(40, 3))
    expected = [sorted(range(40), key=lambda index: np.linalg.norm(among[index] - query))[:4] for query in queries]
    assert plots.nearest_images(torch.from_numpy(queries), torch.from_numpy(among).split(7), 40, 4).tolist() == expected


def test_neighbours_by_pixels_come_first_then_those_by_features(tmp_path, monkeypatch):
    """Constant images: neighbours by pixels have the nearest levels; the features reverse the order."""
    levels = np.arange(10, 250, 10, dtype=np.uint8)
    monkeypatch.setattr(plots, "PAIRWISE_BATCH", 7)  # they are read in parts
    train = np.tile(levels.reshape(-1, 1, 1, 1), (1, 8, 8, 1))
    samples = torch.full((13, 1, 8, 8), 51, dtype=torch.uint8)
    features = np.zeros((13, 1))
    train_features = 250.0 - levels[:, None]
    plots.neighbours(samples, features, train, train_features, tmp_path / "neighbours.png")
    picture = np.asarray(Image.open(tmp_path / "neighbours.png").convert("L"))[22::42, 22::42]
    row = [51, BACKGROUND, 50, 60, 40, 70, BACKGROUND, 240, 230, 220, 210]
    assert picture.tolist() == [row] * plots.QUERIES


@pytest.mark.parametrize("stretch", [False, True])
def test_starts_and_ends_of_chains_and_a_row_for_each(tmp_path, stretch):
    steps = [torch.full((2, 1, 8, 8), step / 10) + torch.tensor([0.0, 0.5]).reshape(2, 1, 1, 1) for step in range(4)]
    samples, asked = torch.full((3, 1, 8, 8), 204, dtype=torch.uint8), []

    def sample_means(noise, chain):
        asked.append((len(noise.index), noise.seed, chain.steps))
        means = torch.full((len(noise.index), 1, 8, 8), 0.4)
        means[:, :, 0, 0], means[:, :, 7, 7] = 0.2, 0.7
        return means

    model = SimpleNamespace(chain=lambda *_, **__: steps, sample_means=sample_means)
    sampling = SamplesSettings(count=3, chain=LangevinSettings(steps=3, step_size=0.1), stretch=stretch)
    plots.chains(model, samples, 7, sampling, tmp_path)
    assert asked == [(3, 7, 0)]
    picture = np.asarray(Image.open(tmp_path / "chain.png").convert("L"))[22::42, 22::42]
    expected = np.round(255 * np.array([[0.0, 0.1, 0.2, 0.3], [0.5, 0.6, 0.7, 0.8]]))
    assert np.abs(picture.astype(float) - expected).max() <= 1  # float32 halves may round either way
    for name, level in ("before", 102), ("after", 204):  # 0.4 is also 0.4 of the way from 0.2 to 0.7
        shown = np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"))
        assert shown[22, 22] == level
    darkest = np.asarray(Image.open(tmp_path / "before.png").convert("L"))[2:42, 2:42].min()
    assert darkest == (0 if stretch else 51)


def test_curve_over_counts_has_its_gap_and_its_mark(tmp_path, monkeypatch):
    drawn = []
    original = charts.Axes.plot
    monkeypatch.setattr(
        charts.Axes,
        "plot",
        lambda self, x, y, **keywords: drawn.append((list(x), y.tolist())) or original(self, x, y, **keywords),
    )
    found = {"counts": [0, 5, 10], "FD-classifier": [3.0, None, 1.0], "energy": [1.0, 2.0, 3.0], "samples": 10}
    plots.steps(AlongChain.model_validate(found), 5, tmp_path / "steps.png")
    assert [x for x, _ in drawn] == [[0, 5, 10]] * 2
    assert np.array_equal(drawn[0][1], [3.0, float("nan"), 1.0], equal_nan=True) and drawn[1][1] == [1, 2, 3]
    assert Image.open(tmp_path / "steps.png").size[0] > 600


def test_modes_are_shown_beside_as_many_draws_from_the_data(tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr(plots.plots, "sorted_counts", lambda samples, path, **words: shown.update(samples))
    counts = np.array([70, 0, 20, 10])
    plots.modes(counts, np.full(4, 0.25), 0, tmp_path / "modes.png")
    assert list(shown) == ["samples", "draws from the data's distribution"] and shown["samples"] is counts
    assert (
        shown["draws from the data's distribution"].sum() == 100
        and (shown["draws from the data's distribution"] > 5).all()
    )
    monkeypatch.undo()
    plots.modes(counts, np.full(4, 0.25), 0, tmp_path / "modes.png")
    plots.modes(counts, np.full(4, 0.25), 0, tmp_path / "again.png")
    assert (tmp_path / "modes.png").read_bytes() == (tmp_path / "again.png").read_bytes()


def test_roc_curves_are_those_of_the_scores_with_their_areas(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(plots.plots, "roc", lambda curves, path: drawn.update(curves))
    inside = {name: np.array([1.0, 2.0, 3.0]) for name in ("", "energy", "complexity", "typicality")}
    outside = {"svhn": {name: np.array([0.0, 2.5]) for name in inside}}
    figures = measure_ood(inside, outside, 10, 0)
    plots.ood(inside, outside, figures, tmp_path)
    names = ["log p(x) − E(x)", "−E(x)", "log p(x) − E(x) + PNG"]
    assert list(drawn["svhn"]) == [f"{name}, AUROC 0.667" for name in names]
    others, hits = drawn["svhn"]["−E(x), AUROC 0.667"]
    assert others.tolist() == [0, 0, 0.5, 0.5, 1] and hits.tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1, 1])
    monkeypatch.undo()
    plots.ood(inside, outside, figures, tmp_path)
    assert Image.open(tmp_path / "roc.png").size[0] > 300 and (tmp_path / "ood.png").is_file()
