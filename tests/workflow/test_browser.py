"""What a reader sees: MLflow's pages of a finished run, and the report, in a headless Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from servers import PATIENCE, QUIET, free_port, started

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """The system's Chromium, without a window."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("there is no Chromium on this machine; on Debian: apt-get install chromium")
    with sync_playwright() as driver:
        # root has no sandbox
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def mlflow_ui(tiny_run) -> Iterator[str]:
    """Address of `mlflow ui`, started in the project's folder."""
    port = free_port()
    # one worker instead of four: each of them imports all of MLflow
    command = ["mlflow", "ui", "--port", str(port), "--workers", "1"]
    environment = tiny_run.environment() | QUIET
    with started(command, f"http://127.0.0.1:{port}/health", tiny_run.folder, **environment) as address:
        yield address


@pytest.fixture
def page(chromium) -> Iterator[Page]:
    """A window of its own for every test."""
    with chromium.new_context(viewport={"width": 1280, "height": 800}) as context:
        context.set_default_timeout(1000 * PATIENCE)
        yield context.new_page()


def test_mlflow_shows_the_stages_under_their_experiment(page, mlflow_ui, tiny_run, tmp_path):
    """As a reader goes: the experiment, its stages, one of them, its curves, a picture; then the registered model."""
    expect.set_options(timeout=1000 * PATIENCE)
    page.goto(f"{mlflow_ui}/#/experiments/1/runs?workflowType=machine_learning")
    parent = page.get_by_role("link", name="tiny", exact=True)
    expect(parent).to_be_visible()
    stages = [
        page.get_by_role("link", name=name, exact=True)
        for name in ("nvae seed0", "ebm vaebm seed0", "evaluation vaebm seed0")
    ]
    expect(stages[0]).to_have_count(0)
    page.get_by_role("row").filter(has=parent).get_by_role("button").first.click()
    for stage in stages:
        expect(stage).to_be_visible()
    page.screenshot(path=tmp_path / "mlflow.png")

    stages[1].click()
    expect(page.get_by_text("smallest Fréchet distance")).to_be_visible()
    expect(page.get_by_text("quiet")).to_be_visible()
    run = page.url.partition("?")[0]
    page.screenshot(path=tmp_path / "mlflow_run.png")
    page.goto(f"{run}/model-metrics")
    for name in ("acceptance", "energy_chains"):  # charts are drawn when they come into sight
        page.get_by_placeholder("Search metric charts").fill(name)
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    page.goto(f"{run}/artifacts/pictures/curves.png")
    picture = page.locator("img[src^='blob:']").first
    expect(picture).to_be_visible()
    with Image.open(tiny_run.folder / "results" / "tiny" / "vaebm" / "seed0" / "pictures" / "curves.png") as expected:
        assert picture.evaluate("image => [image.naturalWidth, image.naturalHeight]") == list(expected.size)
    page.screenshot(path=tmp_path / "mlflow_picture.png")

    page.goto(f"{mlflow_ui}/#/models/vaebm-tiny-vaebm")
    expect(page.get_by_text("Version 1").first).to_be_visible()
    page.goto(f"{mlflow_ui}/#/models/vaebm-tiny-vaebm/versions/1")
    page.get_by_role("link", name="evaluation vaebm seed0").click()
    expect(page.get_by_text("FD-classifier", exact=True).first).to_be_visible()
    expect(page.get_by_text("ebm.chain.steps", exact=True).first).to_be_visible()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_is_whole_without_a_network(page, tiny_run, width, tmp_path):
    """All pictures, no request to a network, no error in the console, no sideways scrolling; on a desk and a phone."""
    asked, problems = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.context.set_offline(True)
    page.set_viewport_size({"width": width, "height": 900})
    address = (tiny_run.folder / "results" / "report.html").as_uri()
    page.goto(address)
    sizes = page.locator("img").evaluate_all(
        "async images => { for (const image of images) await image.decode(); return images.map(i => i.naturalWidth); }"
    )
    page.screenshot(path=tmp_path / "report.png", full_page=True)
    assert sizes and min(sizes) > 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert [url for url in asked if not url.startswith("data:")] == [address] and not problems
