"""Sampling time, from the records that the stage `samples` writes next to its shards."""

from pathlib import Path

from vaebm.evaluation.measurements import Measurements
from vaebm.records.files import read_record
from vaebm.records.metrics import IMAGES_TIMED, SECONDS_PER_50
from vaebm.records.results import Measurement, ShardRecord

SHARD_RECORD = ("the record of how long a shard took", "remove it and its shard, and sample again")
"""Description and advice, for errors of `read_record`."""


def measure_sampling_time(shards: list[Path]) -> Measurements:
    """Compute `seconds-per-50`: mean seconds for 50 images of a batch, for noise and chain, without loading the models.

    The unit names the device. Empty if a shard has no record.

    Raises:
        UserError: a record is damaged.
    """
    paths = [shard.with_suffix(".json") for shard in shards]
    if not all(path.is_file() for path in paths):
        return {}
    records = [read_record(ShardRecord, path, *SHARD_RECORD) for path in paths]
    images, unit = sum(record.images for record in records), " and ".join(dict.fromkeys(one.unit for one in records))
    value = IMAGES_TIMED * sum(record.seconds for record in records) / images
    return {SECONDS_PER_50.pattern: Measurement(value=value, samples=images, unit=unit)}
