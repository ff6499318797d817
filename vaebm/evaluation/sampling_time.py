"""Sampling time, from the records that the stage `samples` writes next to its shards."""

from __future__ import annotations

import json
from pathlib import Path

from vaebm.evaluation.measurements import Measurements
from vaebm.records.metrics import SECONDS_PER_50
from vaebm.system.errors import UserError

IMAGES = 50
"""Number of images of the metric, the one of the published times."""


def measure_sampling_time(shards: list[Path]) -> Measurements:
    """Compute `seconds-per-50`: mean seconds for 50 images of a batch, for noise and chain, without loading the models.

    The unit names the device. Empty if a shard has no record.

    Raises:
        UserError: a record is damaged.
    """
    records = []
    for path in (shard.with_suffix(".json") for shard in shards):
        if not path.is_file():
            return {}
        try:
            record = json.loads(path.read_text())
            records.append((int(record["images"]), float(record["seconds"]), _unit(record)))
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{path}: expected the record of how long a shard took, found a damaged file; "
                "remove it and its shard, and sample again"
            ) from None
    images, seconds = sum(record[0] for record in records), sum(record[1] for record in records)
    units = dict.fromkeys(unit for _, _, unit in records)
    return {
        SECONDS_PER_50.pattern: {"value": IMAGES * seconds / images, "samples": images, "unit": " and ".join(units)}
    }


def _unit(record: dict[str, int | str]) -> str:
    """The unit: seconds on which device, at which batch size and precision."""
    threads = f", {record['threads']} thread(s)" if record["threads"] else ""
    rounded = "" if record.get("precision", "float32") == "float32" else f", {record['precision']}"
    return f"seconds on {record['device']}{threads}, {record['batch']} images at once{rounded}"
