"""Executor of Snakemake for tests: each job runs in a new folder, as on a machine that shares no file with this one."""

import subprocess
import tempfile
from pathlib import Path

from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.settings import CommonSettings

common_settings = CommonSettings(
    non_local_exec=True,
    implies_no_shared_fs=True,
    job_deploy_sources=True,
    auto_deploy_default_storage_provider=False,
)


class Executor(RemoteExecutor):
    """Starts jobs as processes in folders jobs/<rule>.<…> next to the project; `printed` has their output."""

    def run_job(self, job):
        folders = Path.cwd().parent / "jobs"
        folders.mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{job.rule}.", dir=folders))
        with (folder / "printed").open("wb") as printed:
            command = self.format_job_exec(job)
            process = subprocess.Popen(command, cwd=folder, shell=True, stdout=printed, stderr=printed)
        self.report_job_submission(SubmittedJobInfo(job, external_jobid=folder.name, aux={"process": process}))

    async def check_active_jobs(self, active_jobs):
        for job in active_jobs:
            if (status := job.aux["process"].poll()) is None:
                yield job
            elif status == 0:
                self.report_job_success(job)
            else:
                self.report_job_error(job)

    def cancel_jobs(self, active_jobs):
        for job in active_jobs:
            job.aux["process"].kill()
