"""Mirrors the results of an experiment to MLflow: a parent run, one run per stage, and models in the registry.

It reads the stages' files and writes what is new. Its state is results/<experiment>/tracking.json, so it can be
repeated at any time. MLflow is never an input; if it is missing or fails, one line reports this.
"""

import os
import re
from pathlib import Path

from vaebm.records.files import read_tracking, write_record
from vaebm.system.errors import UserError, brief
from vaebm.system.files import locked
from vaebm.system.startup import imports
from vaebm.tracking.database import DATABASE, without_password
from vaebm.tracking.mirror import Mirror
from vaebm.tracking.stages import stages

CAUSES = {
    r"error code 40[13]\b": (
        "the server refuses the credentials",
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    ),
    r"locate credentials|InvalidAccessKeyId|SignatureDoesNotMatch|AccessDenied|Forbidden": (
        "the store of the artifacts refuses the credentials",
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    ),
    r"connect to the endpoint URL": ("the store of the artifacts does not answer", "check MLFLOW_S3_ENDPOINT_URL"),
    r"too many 5\d\d error responses|error code 5\d\d": ("the server answers with errors", "read its log"),
    r"timed out": ("the server does not answer in time", "check its load"),
    r"Max retries exceeded": ("the server does not answer", "check that it runs and MLFLOW_TRACKING_URI"),
}
"""Pattern of an error of a remote → what is wrong, and what to do."""


def run(results: Path) -> None:
    """Mirror results/<experiment> to MLflow, without duplicates.

    Raises:
        UserError: there is no such folder. Whatever goes wrong with MLflow is a warning.
    """
    if not results.is_dir():
        raise UserError(f"{results}: expected the results of an experiment, found no folder")
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{DATABASE}"
    shown = without_password(uri)
    try:
        found = stages(results)
        with imports():  # before the lock: they take as long as the mirror
            import mlflow.tracking

            if any(stage.model for stage in found):
                import mlflow.pytorch  # noqa: F401
        with locked(Path(f"{DATABASE}.lock")):  # of two processes that create the database, one would fail
            mirror = Mirror(uri, results)
            mirror.experiment()
            for stage in found:
                mirror.stage(stage)
            for stage in found:  # last, because models take longest
                mirror.model(stage)
    except Exception as error:  # any failure: the results do not depend on MLflow
        if isinstance(error, UserError):  # says what to do
            problem, advice = str(error), ""
        else:
            problem, advice = f"{type(error).__name__}: {brief(error)}", f"; `vaebm track {results}` does it later"
            cause = next((cause for pattern, cause in CAUSES.items() if re.search(pattern, str(error))), None)
            if cause is not None:
                problem, advice = f"{shown}: {cause[0]}", f"; {cause[1]}{advice}"
            if getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE":
                advice = "; MLflow never takes this name or value: change it"
        failed = read_tracking(results).model_copy(update={"status": f"not mirrored: {problem}"})
        write_record(results / "tracking.json", failed)
        print(f"warning: {results} was not mirrored to MLflow ({problem}){advice}", flush=True)
    else:
        print(f"{results}: {len(mirror.place.stages)} stage runs mirrored to {shown}{mirror.page}")
