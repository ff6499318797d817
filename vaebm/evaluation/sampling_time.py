"""How long the samples took, from the records that the stage `samples` keeps beside its shards."""

from __future__ import annotations

import json
from pathlib import Path

from vaebm.evaluation.measurements import Figures
from vaebm.system.errors import UserError

NAME, IMAGES = "seconds-per-50", 50
"""The figure, and for how many images it is: as many as the published times are for."""


def figures(shards: list[Path]) -> Figures:
    """`seconds-per-50`: seconds for 50 images, noise and chain included, loading the models not; with the device as its unit.

    A mean over all images, drawn in batches: 50 images alone take longer. Empty where a shard has no record, as of an earlier version.

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
                f"{path}: expected the record of how long a shard took, found a damaged file; remove it and its shard, and sample again"
            ) from None
    images, seconds = sum(record[0] for record in records), sum(record[1] for record in records)
    units = dict.fromkeys(unit for _, _, unit in records)
    return {NAME: {"value": IMAGES * seconds / images, "samples": images, "unit": " and ".join(units)}}


def _unit(record: dict[str, int | str]) -> str:
    """Seconds on what."""
    threads = f", {record['threads']} thread(s)" if record["threads"] else ""
    rounded = "" if record.get("precision", "float32") == "float32" else f", {record['precision']}"
    return f"seconds on {record['device']}{threads}, {record['batch']} images at once{rounded}"
