"""Plots of a run and their captions."""

from pathlib import Path
from typing import NamedTuple

from vaebm.config import BASELINE
from vaebm.config.yaml_files import read_yaml
from vaebm.records.metrics import metric
from vaebm.records.results import VariantRecord


class Picture(NamedTuple):
    """A plot of the report."""

    title: str
    caption: str
    path: Path
    """Relative to the folder of the experiment's results."""
    flags: list[str]
    """How it is shown, as captions.yaml explains."""


def gallery(record: VariantRecord) -> list[Picture]:
    """The plots of the first seed of one variant, which captions.yaml lists."""
    first, quantities = record.runs[0], {metric(name).quantity for name in record.metrics}
    kind = "baseline" if record.variant == BASELINE else "gan" if "wgan" in first.training else "chains"
    kind = "foreign" if record.foreign else "on noise" if first.training.keys() == {"nvae", "prior"} else kind
    start = "pixels" if record.chain.potential == "pixels" else "noise"
    trained = {stage for stage, one in first.training.items() if one.checkpoint is None}
    facts = {kind, start, *trained, *quantities}
    if steps := first.steps:
        fewer = steps.samples < record.metrics[steps.metric].samples
        facts |= {"steps", "fewer images" if fewer else "as many images"}
    run = Path(record.variant, f"seed{first.seed}")
    return [
        Picture(one["title"], one["caption"].format(steps=record.chain.steps), run / one["file"], one.get("flags", []))
        for one in read_yaml(Path(__file__).with_name("captions.yaml"))
        if facts.issuperset(one["when"])
    ]
