"""What the tests of damaged data share: settings of a user's set, and the line with which its preparation refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from user_files import SIDE

from vaebm.config import DataSettings
from vaebm.config.yaml_files import validate
from vaebm.data import prepare
from vaebm.system.errors import UserError


def settings(dataset: str, path: Path, **more: object) -> DataSettings:
    about = {"dataset": dataset, "path": str(path), "side": SIDE, "channels": 3, "heldout": 0.25}
    return validate(DataSettings, about | more, "data")


def refusal(data: DataSettings, folder: Path) -> str:
    """The one short line with which the preparation refuses; nothing is made."""
    with pytest.raises(UserError) as error:
        prepare(data, folder)
    line = str(error.value)
    assert "\n" not in line and line.isprintable() and len(line) <= 1000 and not (folder / "manifest.json").exists()
    return line
