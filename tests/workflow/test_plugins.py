"""Plug-ins of every kind: an installed package and a file in plugins/, through the pipeline to their row."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

PACKAGE = '''
import numpy as np
from pydantic import PositiveInt

from vaebm.config import DATASETS, ENERGIES, METRICS
from vaebm.config import DatasetFacts, DataSettings, EnergyFacts, MetricSettings, NetworkSettings
from vaebm.records.metrics import Metric


class StripesSettings(DataSettings):
    period: PositiveInt = 4
    """Rows from stripe to stripe."""


def prepare(data, threads):
    rows = (np.arange(8) + np.arange(160)[:, None]) % data.period * (255 // data.period)
    images = np.broadcast_to(rows[:, :, None, None], (160, 8, 8, 1)).astype(np.uint8)
    return images, np.zeros(160, np.int64), {"train": (0, 120), "heldout": (120, 160)}, {"stripes": data.period}


DATASETS["stripes"] = DatasetFacts(8, 1, 120, 40, prepare, settings=StripesSettings)


class LevelSettings(MetricSettings):
    level: PositiveInt
    """Smallest grey level that counts."""


def measure(inputs, settings):
    return (inputs.samples >= settings.level).float().mean()


METRICS["bright-share"] = Metric(
    "bright", "bright-share", "Sample quality", "images", "↑", "Share of bright pixels.", measure=measure,
    settings=LevelSettings,
)


class ShallowSettings(NetworkSettings):
    width: PositiveInt = 4
    """Channels."""


def shallow(settings, channels):
    from torch import nn

    layers = nn.Conv2d(channels, settings.width, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(settings.width, 1), nn.Flatten(0))


ENERGIES["shallow"] = EnergyFacts(shallow, ShallowSettings)
'''

FILE = '''
"""A kernel and an extractor."""

from pydantic import PositiveFloat

from vaebm.config import EXTRACTORS, KERNELS, ChainSettings, ExtractorFacts, KernelFacts

__version__ = "3"


class DampedSettings(ChainSettings):
    factor: PositiveFloat
    """Factor of the step size."""


def damped(potential, eps, *, steps, step_size, factor, noise, callback=None):
    from vaebm.chain.langevin import langevin

    return langevin(potential, eps, steps=steps, step_size=step_size * factor, noise=noise, callback=callback)


KERNELS["damped"] = KernelFacts(damped, DampedSettings)


class Pixels:
    def __init__(self, settings):
        self.settings = settings

    def features(self, images):
        return images.flatten(1).float()[:, :16] / 255

    def logits(self, features):
        return features[:, :3]


EXTRACTORS["pixels"] = ExtractorFacts(Pixels, 16)
'''

CHANGES = {
    "data": {"dataset": "stripes", "period": 3},
    "ebm": {"network": {"kind": "shallow", "width": 2}, "chain": {"kernel": "damped", "factor": 0.5}},
    "samples": {"shards": 1, "chain": {"kernel": "damped", "factor": 0.5}},
    "evaluation": {
        "extractor": "pixels", "classifier": None, "ood": ["interpolation"], "bootstrap": 2,
        "metrics": [{"name": "bright-share", "level": 100}],
    },
}  # fmt: skip


def install(folder: Path, version: str) -> None:
    """What `pip install --target` writes for a package of one module with an entry point."""
    folder.mkdir(exist_ok=True)
    (folder / "stripes.py").write_text(PACKAGE)
    for old in folder.glob("*.dist-info/*"):
        old.unlink()
    metadata = folder / "vaebm_stripes-1.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vaebm-stripes\nVersion: {version}\n")
    (metadata / "entry_points.txt").write_text("[vaebm.plugins]\nstripes = stripes\n")


def write_experiment(project, **changes) -> None:
    """The experiment `mine`: `tiny` with the plug-ins."""
    content = yaml.safe_load((project.folder / "config/experiments/tiny.yaml").read_text())
    for name, section in (CHANGES | changes).items():
        content[name] = {"dataset": section["dataset"]} | section if name == "data" else content[name] | section
        if "chain" in section:
            content[name]["chain"] = {"steps": 2, "step_size": 0.04} | section["chain"]
    (project.folder / "config/experiments/mine.yaml").write_text(yaml.safe_dump(content))


@pytest.fixture
def project(clone, tmp_path, monkeypatch):
    """A clone with the experiment, the package and the file."""
    install(tmp_path / "site", "1.2")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}:{clone.folder}")
    (clone.folder / "plugins").mkdir()
    (clone.folder / "plugins/damped.py").write_text(FILE)
    write_experiment(clone)
    return clone


MINE = ("results/benchmarks.json", "--config", "experiments=[mine]")


def test_plugins_run_to_their_row(project, tmp_path):
    project.snakemake(*MINE)
    results = project.folder / "results"
    figures = json.loads((results / "benchmarks.json").read_text())["mine"]["vaebm"]
    assert 0 < figures["bright-share"] < 1 and figures["FD-pixels"] > 0 and "FD-classifier" not in figures
    record = json.loads((results / "mine/vaebm/seed0/evaluation/metrics.json").read_text())
    names = ["bright-share==1.2", "damped==3", "pixels==3", "shallow==1.2", "stripes==1.2"]
    assert [one.partition(" sha256:")[0] for one in record["plugins"]] == names
    assert record["chain"]["kernel"] == "damped" and record["chain"]["factor"] == 0.5
    assert json.loads((project.folder / "data/stripes/manifest.json").read_text())["source"] == {"stripes": 3}
    markdown = (results / "benchmarks.md").read_text()
    assert "bright-share ↑" in markdown and "shallow==1.2 sha256:" in markdown and "damped, 2 steps" in markdown
    written = yaml.safe_load((results / "mine/vaebm/seed0/ebm.yaml").read_text())["ebm"]
    assert written["network"] == {"kind": "shallow==1.2", "width": 2}
    assert "Nothing to be done" in project.snakemake("--dry-run", *MINE)

    model = "import stripes; from vaebm import VAEBM; print(VAEBM.from_results('results/mine/vaebm').sample(2).shape)"
    assert "[2, 1, 8, 8]" in project.run(sys.executable, "-c", model)

    install(tmp_path / "site", "1.3")
    planned = project.snakemake("--dry-run", *MINE)
    assert all(f"rule {name}:" in planned for name in ("data", "ebm", "evaluation"))

    (project.folder / "plugins/damped.py").unlink()
    refused = project.snakemake("--dry-run", *MINE, fails=True).strip()
    assert "there is no transition kernel 'damped'; transition kernels that exist: langevin" in refused


METRIC = CHANGES["evaluation"] | {"metrics": [{"name": "bright-share", "leval": 3}]}
MISTAKES = {
    "data.period: Input should be greater than 0, found 0": {"data": {"dataset": "stripes", "period": 0}},
    "evaluation.metrics.0: leval: unknown key; keys that exist: name, level": {"evaluation": METRIC},
    "evaluation.metrics.0.level: expected a value, found none": {"evaluation": METRIC | {"metrics": ["bright-share"]}},
    "ebm.network.kind: there is no energy network 'deep'; energy networks that exist: residual, shallow": {
        "ebm": {"network": {"kind": "deep"}}
    },
}
READ = """
import sys
from pathlib import Path
from vaebm.config.yaml_files import read_experiment

for path in sys.argv[1:]:
    try:
        read_experiment(Path(path))
    except ValueError as error:
        print(error)
assert "torch" not in sys.modules
"""


def test_settings_of_plugins_are_checked_without_torch(project):
    paths = []
    for number, changes in enumerate(MISTAKES.values()):
        write_experiment(project, **changes)
        paths.append(f"config/experiments/mistake{number}.yaml")
        (project.folder / "config/experiments/mine.yaml").rename(project.folder / paths[-1])
    found = project.run(sys.executable, "-c", READ, *paths).splitlines()
    for path, line, message in zip(paths, found, MISTAKES, strict=True):
        assert line.partition("; also not right")[0] == f"{path}: {message}"


def test_schema_has_the_settings_of_plugins(project):
    definitions = json.loads(project.run(sys.executable, "-m", "vaebm.config.schema"))["$defs"]
    fields = {
        one["title"]: one["properties"]
        for name in ("DataSettings", "EnergyNetworkSettings", "LangevinSettings", "MetricSettings", "ExtractorSettings")
        for one in definitions[name].get("anyOf", [definitions[name]])
    }
    assert fields["ShallowSettings"]["width"]["description"] == "Channels." and "level" in fields["LevelSettings"]
    assert {"stripes", "digits"} < set(fields["StripesSettings"]["dataset"]["enum"])
    assert "pixels" in fields["ExtractorSettings"]["name"]["enum"] and "factor" in fields["DampedSettings"]


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import nothing_there", "ModuleNotFoundError: No module named 'nothing_there'"),
        ("def (", "SyntaxError: invalid syntax (broken.py, line 1)"),
        (
            "from vaebm.config import DATASETS\nDATASETS['digits'] = 1",
            "ValueError: there is a data set 'digits' already",
        ),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_named_in_one_line(project, program, reason):
    (project.folder / "plugins/broken.py").write_text(program)
    (project.folder / "mine.yaml").write_text("{}")
    (line,) = project.run(sys.executable, "-c", READ, "mine.yaml").splitlines()
    assert line.startswith(f"plugins/broken.py: expected a plug-in, found one that cannot be imported ({reason}")


def test_snakemake_names_a_plugin_that_cannot_be_imported(project):
    (project.folder / "plugins/broken.py").write_text("1 / 0")
    *_, line = project.snakemake("--dry-run", fails=True).splitlines()
    assert line.startswith(
        "plugins/broken.py: expected a plug-in, found one that cannot be imported (ZeroDivisionError"
    )
