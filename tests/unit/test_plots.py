"""Pictures: what stands where, and that the same contents give the same bytes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from vaebm import plots
from vaebm.plots import charts


def read(path):
    return np.asarray(Image.open(path).convert("RGB"))


def test_grid_enlarges_by_nearest_neighbour_and_keeps_the_order(tmp_path):
    """Every image is found again, pixel by pixel, at its place; nothing is blurred or stretched in contrast."""
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
    plots.image_grid(images, tmp_path / "grid.png", columns=3)
    picture = read(tmp_path / "grid.png")
    factor, gap = 5, 2
    assert picture.shape == (2 * (8 * factor + gap) + gap, 3 * (8 * factor + gap) + gap, 3)
    for index, image in enumerate(images):
        top, left = gap + index // 3 * (8 * factor + gap), gap + index % 3 * (8 * factor + gap)
        tile = picture[top : top + 8 * factor, left : left + 8 * factor]
        expected = (image[0] * 255).round().byte().numpy().repeat(factor, 0).repeat(factor, 1)
        assert (tile == expected[..., None]).all()
    assert (picture[-gap - 1, -gap - 1] == plots.BACKGROUND).all(), "the sixth place stays empty"


def test_grid_clamps_and_keeps_colours(tmp_path):
    images = torch.tensor([1.7, -0.3, 0.5]).reshape(1, 3, 1, 1).expand(1, 3, 64, 64)
    plots.image_grid(images, tmp_path / "grid.png")
    assert read(tmp_path / "grid.png")[32, 32].tolist() == [255, 0, 128]
    assert read(tmp_path / "grid.png").shape == (64 + 4, 64 + 4, 3), "large images are not enlarged"


@pytest.fixture
def history(tmp_path):
    path = tmp_path / "history.jsonl"
    records = [{"step": step, "loss": 1 / (step + 1), "kl_0": 2.0, "kl_1": 3.0} for step in range(250)]
    records[7]["loss"] = float("nan")
    records[249]["heldout"] = 0.1
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 250, "lo')
    return path


def test_history_without_the_line_that_a_crash_cut_off(history):
    assert [record["step"] for record in plots.read_history(history)] == list(range(250))


def test_curves_are_a_function_of_the_history(history, tmp_path, monkeypatch):
    """Equal bytes at other times and under other names, with gaps, spikes and missing keys in the history."""
    panels = {"loss": ["loss", "heldout"], "KL": ["kl_"], "not there": ["absent"]}
    plots.training_curves(history, tmp_path / "a.png", panels)
    monkeypatch.chdir(tmp_path)
    plots.training_curves(history, tmp_path / "folder" / "b.png", panels)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "folder" / "b.png").read_bytes()
    assert set(Image.open(tmp_path / "a.png").info) <= {"dpi"}, "no time, no program"


def test_moving_mean_of_a_constant_with_gaps_is_the_constant():
    values = np.full(500, 3.0)
    values[[0, 17, 499]] = np.nan
    assert np.allclose(charts._smooth(values), 3.0, rtol=1e-12)
    line = np.arange(500.0)
    assert np.allclose(charts._smooth(line)[5:-5], line[5:-5], rtol=1e-12), "centred: a straight line stays where it is"


def test_limits_follow_the_curve_and_not_a_spike():
    values = np.concatenate([np.linspace(0, 1, 999), [1e6]])
    low, high = charts._limits(values)
    assert low < 0.02 and 0.98 < high < 1.2
    assert charts._limits(np.full(3, np.nan)) is None


def test_a_failed_picture_leaves_nothing(tmp_path):
    with pytest.raises(IndexError), charts._figure(tmp_path / "a.png", 1) as axes:
        axes[1].plot([1])
    assert list(tmp_path.iterdir()) == []


def test_histograms_count_what_lies_beyond_in_the_outermost_bins(tmp_path, monkeypatch):
    """The bars of each sample add up to one, however long its tail."""
    drawn = []
    original = charts.Axes.stairs

    def stairs(self, values, *arguments, **keywords):
        drawn.append(float(np.sum(values)))
        return original(self, values, *arguments, **keywords)

    monkeypatch.setattr(charts.Axes, "stairs", stairs)
    generator = np.random.default_rng(0)
    plots.histograms(
        {"a": {"inside": generator.normal(size=300), "outside": 1000 * generator.normal(size=50)}},
        tmp_path / "h.png",
        "score",
    )
    assert np.allclose(drawn, 1.0) and len(drawn) == 2
    assert (tmp_path / "h.png").is_file()


def test_confusion_is_written(tmp_path):
    plots.confusion(np.eye(10, dtype=np.int64) * 30, tmp_path / "c.png", np.arange(10))
    assert read(tmp_path / "c.png").std() > 5


def test_over_grid_draws_a_line_for_each_combination_of_the_other_settings(tmp_path):
    """Numbers in their order, other values as they come; equal data give equal bytes."""
    points = [({"a.steps": steps, "b": size}, steps * size, 0.1) for steps in (20, 5) for size in (1.0, 2.0)]
    named = [({"a.kind": kind}, 1.0, 0.0) for kind in ("noise", "density", [1, 2])]
    for name, shown in {"one": points, "again": points, "named": named}.items():
        charts.over_grid(shown, "FID ↓", tmp_path / f"{name}.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    assert (tmp_path / "named.png").stat().st_size > 1000
