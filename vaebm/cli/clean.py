"""Removes checkpoints and snapshots that finished trainings left behind (`vaebm clean`)."""

import shutil
from pathlib import Path

from vaebm.config import STAGES
from vaebm.config.yaml_files import read_settings, validate
from vaebm.records.files import TRAINING_RECORD, read_record
from vaebm.records.training import TrainingRecord
from vaebm.system.errors import UserError
from vaebm.system.files import model_of


def left_behind(training: Path) -> list[Path]:
    """Checkpoint folders older than training.json, which are of a killed process or of earlier settings.

    None if there is no model, or its settings are not those of the settings file: a training is then unfinished.
    """
    try:
        record = read_record(TrainingRecord, training, *TRAINING_RECORD)
        settings = training.with_name(f"{record.stage}.yaml")
        wanted = (record.seed, validate(STAGES[record.stage], record.settings, f"{training}: settings"))
        if not model_of(training.parent).is_file() or read_settings(settings, STAGES[record.stage]) != wanted:
            return []
    except (UserError, KeyError):
        return []
    ended, folders = training.stat().st_mtime, sorted((training.parent / "checkpoints").glob("*/"))
    return [folder for folder in folders if all(path.stat().st_mtime < ended for path in (folder, *folder.rglob("*")))]


def run(results: Path, delete: bool) -> None:
    """List the folders and their sizes, and remove them if `delete`."""
    total = 0
    for folder in [each for path in sorted(results.glob("*/*/seed*/training.json")) for each in left_behind(path)]:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        total += size
        print(f"{folder}: {size / 1e6:,.1f} MB")
        if delete:
            shutil.rmtree(folder)
    what = "checkpoints and snapshots of finished trainings"
    if not total:
        print(f"There are no {what} to remove.")
    else:
        print(f"{'Freed' if delete else '`vaebm clean --delete` frees'} {total / 1e6:,.1f} MB of {what}.")
