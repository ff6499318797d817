"""The pages in docs/measurements: their tables are those of the records, and a run becomes a record."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from records import RECORD

PAGES = Path(__file__).parents[2] / "docs" / "measurements"


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    specification = importlib.util.spec_from_file_location("measurement_tables", PAGES / "tables.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_tables_of_the_pages_are_those_of_the_records(tables: ModuleType) -> None:
    pages = {path.name: path.read_text() for path in sorted(PAGES.glob("*.md"))}
    assert sum(page.count("\n<!-- table: ") for page in pages.values()) > 8
    for name, page in pages.items():
        assert tables.written(page) == page, f"{name}: write it anew: python docs/measurements/tables.py"


def test_every_record_is_shown_in_a_page(tables: ModuleType) -> None:
    lines = [line for path in PAGES.glob("*.md") for line in path.read_text().splitlines()]
    shown = {line.split()[3] for line in lines if line.startswith("<!-- table: ")}
    assert {path.stem for path in (PAGES / "records").glob("*.json")} == shown


def results(folder: Path, seeds: dict[int, float], variant: str) -> None:
    """A metrics.json over the seeds, with what a record takes from it."""
    by_seed = [{"seed": seed, "value": value, "interval": [value - 1, value + 1]} for seed, value in seeds.items()]
    floor = [one | {"value": 1.0} for one in by_seed]
    steps = {"counts": [0, 5], "FD-classifier": [14.0, 2.5], "energy": [0.0, 1.0], "samples": 500}
    (folder / variant).mkdir(parents=True)
    content = RECORD | {
        "variant": variant,
        "metrics": {
            "FD-classifier": {"samples": 10000, "by_seed": by_seed},
            "KL": {"samples": 10000, "by_seed": by_seed},
            "KL-floor": {"samples": 10000, "by_seed": floor},
        },
        "runs": [{"seed": seed, "steps": steps} for seed in seeds],
    }
    (folder / variant / "metrics.json").write_text(json.dumps(content))


def test_seeds_of_two_folders_become_one_record(tables: ModuleType, tmp_path: Path) -> None:
    folders = [tmp_path / "a" / "digits", tmp_path / "b" / "digits"]
    for folder, seed in zip(folders, (0, 1), strict=True):
        results(folder, {seed: 9.0 + 2 * seed}, "nvae")
        results(folder, {seed: 3.0 + 3 * seed}, "vaebm")
    record = json.loads(json.dumps(tables.record(folders, "two cores", None)))
    assert record["command"] == "snakemake --cores all --config 'experiments=[digits]' 'seeds=[0,1]'"
    assert (record["commit"], record["torch"]) == ("ccccccc", "2.13.0")
    assert tables.values(record, "FD-classifier", "KL-excess/nvae") == [
        "|  | seed 0 | seed 1 | mean ± deviation |",
        "|---|---|---|---|",
        "| FD-classifier ↓, NVAE | 9.000 | 11.00 | 10.00 ± 1.4 |",
        "| FD-classifier ↓, VAEBM | 3.000 | 6.000 | 4.500 ± 2.1 |",
        "| KL-excess, ratio to the NVAE ↓, VAEBM | 0.2500 | 0.5000 | 0.3750 ± 0.18 |",
    ]
    assert tables.chain(record, "vaebm", "FD-classifier")[2:] == [
        "| seed 0 | 14.00 | 2.500 |",
        "| seed 1 | 14.00 | 2.500 |",
    ]


def test_one_seed_is_shown_with_its_interval(tables: ModuleType, tmp_path: Path) -> None:
    results(tmp_path / "digits", {7: 3.0}, "vaebm")
    record = tables.record([tmp_path / "digits"], "two cores", "make run")
    assert tables.values(record, "FD-classifier", "KL-excess") == [
        "|  | VAEBM |",
        "|---|---|",
        "| FD-classifier ↓ | 3.000 [2.000, 4.000] |",
        "| KL-excess ↓ | 2.000 |",
    ]
    assert tables.origin(record)[1:] == ["- Machine: two cores.", "- To repeat: `make run`."]
