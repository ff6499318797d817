"""The place of MLflow's runs: a database that is made here, or a server's address."""

import re
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from vaebm.system.errors import UserError
from vaebm.system.files import writing

DATABASE = "mlflow.db"
"""Default of `mlflow ui` in the same folder; MLFLOW_TRACKING_URI has precedence."""


def prepare_database(path: Path) -> None:
    """Create MLflow's database whole: its own creation is not atomic, and it cannot continue one that was interrupted.

    Raises:
        UserError: there is a database whose creation was interrupted.
    """
    from mlflow.tracking import MlflowClient

    if path.exists() and path.stat().st_size:
        with closing(sqlite3.connect(path)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
            # a whole database has the experiment Default
            if "experiments" in tables and database.execute("SELECT count(*) FROM experiments").fetchone() != (0,):
                return
        raise UserError(
            f"{path}: expected a whole database of MLflow, found one whose creation was interrupted, without any runs; "
            f"remove it and run again"
        )
    with tempfile.TemporaryDirectory() as folder:
        new = Path(folder, DATABASE)
        MlflowClient(tracking_uri=f"sqlite:///{new}").search_experiments()
        with writing(path) as stream:
            stream.write(new.read_bytes())


def without_password(uri: str) -> str:
    """The URI without a user's name and password, for files and messages."""
    return re.sub("//.*@", "//", uri)
