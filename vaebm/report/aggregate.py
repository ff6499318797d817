"""Stage `benchmarks`: metrics over the seeds and the paper's values, as csv, Markdown, LaTeX, json and HTML."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from vaebm.config import Variant
from vaebm.config.yaml_files import read_experiment
from vaebm.records.files import METRICS_RECORD, AnotherVersion, read_record, read_run, read_tracking, write_record
from vaebm.records.results import Measurement, MetricValue, Numbers, RunRecord, SeedRecord, SeedValue, VariantRecord
from vaebm.report.html import page
from vaebm.report.latex import latex
from vaebm.report.paper import read_paper
from vaebm.report.table import TABLE_COLUMNS, Measured, commands, lines, results_markdown
from vaebm.system.errors import UserError
from vaebm.system.files import writing
from vaebm.system.provenance import merged

RECORDS = "*/*/metrics.json"
"""Pattern of the records over the seeds: <experiment>/<variant>/metrics.json."""

EARLIER = "an earlier version evaluated some of its seeds; remove their evaluation/metrics.json to measure it"
"""Why a metric of some seeds has no value."""


def over_seeds(runs: list[RunRecord], configuration: str, tracking: str | None) -> VariantRecord:
    """Combine the runs of a variant, one per seed: mean of every metric, and standard deviation over the seeds.

    `configuration` is the hash of the experiment's settings, `tracking` the id of its MLflow run.

    Raises:
        UserError: the runs differ in data, extractor, chain or libraries, or two have the same seed.
    """
    runs = sorted(runs, key=lambda run: run.seed)
    first, seeds = runs[0], [run.seed for run in runs]
    name, common = f"{first.experiment}/{first.variant}", first.common
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{name}: expected each seed once, found {seeds}")
    for run in runs[1:]:
        if differing := [key for key, value in run.common.items() if value != common[key]]:
            raise UserError(
                f"{name}: expected the same {differing[0]} for all seeds, "
                f"found others for seed {run.seed} than for {seeds[0]}; run it again"
            )
    shared = [metric for metric in first.metrics if all(metric in run.metrics for run in runs)]
    partial = {metric for run in runs for metric in run.metrics}.difference(shared)
    reasons = {
        metric: next((f"seed {run.seed}: {run.without[metric]}" for run in runs if metric in run.without), EARLIER)
        for metric in sorted(partial)
    }
    return VariantRecord(
        experiment=first.experiment,
        variant=first.variant,
        configuration=configuration,
        metrics={metric: _over_seeds(seeds, [run.metrics[metric] for run in runs]) for metric in shared},
        without=first.without | reasons,
        real=first.real,
        **common,
        **merged(map(dict, runs)),
        tracking=tracking,
        runs=[
            SeedRecord(seed=run.seed, models=run.models, training=run.training, steps=run.steps, ood=run.ood)
            for run in runs
        ],
    )


def _over_seeds(seeds: list[int], found: list[Measurement]) -> MetricValue:
    """One metric over the seeds."""
    values, several = [one.value for one in found], len(found) > 1
    units = dict.fromkeys(one.unit for one in found if one.unit)
    pairs = zip(seeds, found, strict=True)
    return MetricValue(
        value=float(np.mean(values)),
        spread=float(np.std(values, ddof=1)) if several else None,
        interval=None if several else found[0].interval,
        samples=found[0].samples,
        seeds=seeds,
        by_seed=[SeedValue(seed=seed, value=one.value, interval=one.interval) for seed, one in pairs],
        unit=" and ".join(units) or None,
    )


def collect_records(
    metrics: list[Path], experiments: Path, results: Path, changes: Sequence[str] = (), base: str | None = None
) -> Measured:
    """Collect the records of the given runs, and of experiments evaluated earlier with their current settings.

    Writes results/<experiment>/<variant>/metrics.json for the given runs, which had `changes` and the file of `base`.

    Raises:
        UserError: a file is missing or damaged, or the seeds of a variant do not belong together.
    """
    groups: dict[tuple[str, str], list[RunRecord]] = {}
    for run in map(read_run, metrics):
        groups.setdefault((run.experiment, run.variant), []).append(run)
    records: dict[str, dict[str, VariantRecord]] = {}
    for (experiment, variant), runs in groups.items():
        settings = read_experiment(experiments / f"{base or experiment}.yaml", changes)
        own = settings.every_variant.get(variant, Variant())
        grid = {key: value for key, (value,) in own.grid.items()}
        record = over_seeds(runs, settings.hash(), read_tracking(results / experiment).run).model_copy(
            update={"base": base, "changes": list(changes), "plotted": own.metric, "grid": grid}
        )
        write_record(results / experiment / variant / "metrics.json", record)
        records.setdefault(experiment, {})[variant] = record
    notes = []
    for path in sorted(results.glob(RECORDS)):
        experiment, variant = path.parts[-3:-1]
        if (experiment, variant) in groups:
            continue
        where = "/".join(path.parts[-3:])
        try:
            earlier = read_record(VariantRecord, path, *METRICS_RECORD)
        except AnotherVersion:
            notes.append(
                f"{where} is left out: another version of the program wrote it; "
                f"`snakemake --config 'experiments=[{experiment}]'` makes it anew."
            )
            continue
        file = experiments / f"{earlier.base or experiment}.yaml"
        if not file.is_file():
            notes.append(f"{where} is left out: there is no {file.name} among the experiments any more.")
        elif earlier.configuration != _configuration(file, earlier.changes):
            notes.append(f"{where} is left out: it was measured with other settings than {file.name} has now.")
        else:
            records.setdefault(experiment, {})[variant] = earlier
    for experiment, found in records.items():
        one = next(iter(found.values()))
        models = read_experiment(experiments / f"{one.base or experiment}.yaml", one.changes).models
        order = dict.fromkeys([*models, *found])
        records[experiment] = {variant: found[variant] for variant in order if variant in found}
    return Measured(records, notes)


def _configuration(file: Path, changes: list[str]) -> str:
    """Hash of an experiment's settings; empty if it has no place for `changes` any more."""
    try:
        return read_experiment(file, changes).hash()
    except UserError:
        if not changes:
            raise
        return ""


def run(
    metrics: list[Path],
    paper: Path,
    experiments: Path,
    results: Path,
    changes: Sequence[str] = (),
    base: str | None = None,
) -> None:
    """Write results/<experiment>/<variant>/metrics.json, and benchmarks.csv, .md, .tex, .json and report.html.

    `changes` are settings from the command line. `base` is the experiment file of runs with a name of their own. The
    earlier records are used for the variants of which `metrics` has no metrics.json of a run.

    Raises:
        UserError: a file is missing or damaged, the seeds of a variant do not agree, or nothing was measured.
    """
    figures = read_paper(paper)
    measured = collect_records(metrics, experiments, results, changes, base)
    if not measured.records:
        found = " ".join(measured.notes) or f"no {RECORDS}"
        raise UserError(
            f"{results}: expected the figures of at least one experiment, found none ({found}); "
            "`snakemake` measures them"
        )
    runs = commands(figures, experiments)
    frame = pd.DataFrame(lines(measured, figures, runs), columns=TABLE_COLUMNS)
    frame["samples"] = frame["samples"].astype("Int64")
    texts = {
        "benchmarks.csv": frame.to_csv(index=False, lineterminator="\n"),
        "benchmarks.md": results_markdown(measured, figures, runs),
        "benchmarks.tex": latex(measured, figures),
        "report.html": page(measured, figures, runs, results),
    }
    for name, text in texts.items():
        with writing(results / name) as stream:
            stream.write(text.encode())
    values = {name: {variant: one.values for variant, one in found.items()} for name, found in measured.records.items()}
    write_record(results / "benchmarks.json", Numbers(values))
