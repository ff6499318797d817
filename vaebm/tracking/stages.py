"""Reads the results of an experiment: parameters, tags, curves, metrics and files of every run.

Names are those of the experiment file (`nvae.training.batch`) and of the table (`FD-classifier`).
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vaebm.config import BASELINE, PRIOR, SamplesSettings, fingerprint
from vaebm.config.yaml_files import read_experiment, read_yaml, validate
from vaebm.records.files import METRICS_RECORD, TRAINING_RECORD, dump, read_record, read_run
from vaebm.records.results import ChainRecord, MirroredRun, Numbers, RunRecord, VariantRecord
from vaebm.records.training import ClassifierRecord, TrainingRecord
from vaebm.system.files import model_of

TABLE = ("benchmarks.csv", "benchmarks.md", "benchmarks.tex", "benchmarks.json", "report.html")

TRAININGS = ("classifier", "nvae", "prior", "ebm", "wgan")
"""Stages with a history; each has a settings file of the same name."""

TEXT = 5000
"""MLflow's limit for the characters of a tag or a note."""


@dataclass(frozen=True)
class RegisteredModel:
    """A finished model for the registry."""

    name: str
    """vaebm-<experiment>-<variant>."""
    folder: Path
    """results/<experiment>/<variant>/seed<k>."""
    hash: str
    """Hash of networks and chain; a changed one makes a new version."""
    tags: dict[str, str]


class DataInput(NamedTuple):
    """A data set that a run read."""

    folder: Path
    hash: str
    """Hash of the manifest."""
    images: int
    context: str
    """`training`, `evaluation` or `out-of-distribution`."""


@dataclass
class StageRun:
    """One stage run, or the whole experiment, as it is mirrored."""

    name: str
    parameters: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)
    """Lines of history.jsonl, which grows."""
    figures: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """Further metrics against an iteration or a number of steps of a chain, complete at the end of the stage."""
    files: dict[str, list[Path]] = field(default_factory=dict)
    data: list[DataInput] = field(default_factory=list)
    note: str = ""
    """Markdown at the top of the run's page."""
    began: int | None = None
    ended: int | None = None
    """Milliseconds since 1970; None: unknown."""
    model: RegisteredModel | None = None

    def continues(self, place: MirroredRun) -> bool:
        """True if MLflow has the beginning of this run, and not of one with other settings or numbers."""
        lines = self.history[: place.lines]
        same_inputs = place.parameters == fingerprint(self.parameters) and place.history == fingerprint(lines)
        same_figures = not place.figures or place.figures == self.figures
        return same_inputs and same_figures and place.curves in ("", fingerprint(self.curves))

    def add(self, name: str, value: Any) -> None:
        """Add all numbers in `value`, under names joined by slashes.

        A number, or a dictionary with a `value`, is a metric; an `interval` adds interval/<name>-low and -high. A list
        of numbers, or a dictionary from iterations to numbers, is a curve; null is a gap. Lists in one dictionary share
        the steps `counts`, or else end at the same step, and the longest begins at 0.
        """
        if _is_number(value):
            self.figures[name] = float(value)
        if not isinstance(value, dict):
            return
        if _is_number(value.get("value")):
            self.figures[name] = float(value["value"])
            for bound, end in zip(("low", "high"), value.get("interval") or (), strict=False):
                self.figures[f"interval/{name}-{bound}"] = float(end)
        elif value and all(key.isdecimal() for key in value):
            self.curves[name] = [(int(step), float(one)) for step, one in value.items() if _is_number(one)]
        else:
            lists = {
                key: one
                for key, one in value.items()
                if isinstance(one, list) and all(entry is None or _is_number(entry) for entry in one)
            }
            counts = lists.pop("counts", None) or list(range(max(map(len, lists.values()), default=0)))
            for key, one in lists.items():
                points = zip(counts[len(counts) - len(one) :], one, strict=True)
                finite = [(int(step), float(number)) for step, number in points if number is not None]
                self.curves[f"{name}/{key}"] = finite
            for key, one in value.items():
                self.add(f"{name}/{key}", one)


def stages(results: Path) -> list[StageRun]:
    """All stage runs with results, in order."""
    begun = {path.parent for name in ("history.jsonl", "training.json") for path in results.glob(f"*/seed*/{name}")}
    classifier = [path.parent for path in results.glob("classifier/history.jsonl")]
    found = [_training(folder) for folder in (*classifier, *sorted(begun))]
    evaluated = results.glob("*/seed*/evaluation/metrics.json")
    seeds = sorted(evaluated, key=lambda path: (path.parts[-4], len(path.parts[-3]), path.parts[-3]))
    shown = set[str]()
    for path in seeds:
        if stage := _evaluation(path.parent):
            if path.parts[-4] in shown:
                stage.model = None  # the first seed's model represents the variant, as in VAEBM.from_results
            found.append(stage)
        shown.add(path.parts[-4])
    return found


def _training(folder: Path) -> StageRun:
    """A run of one of `TRAININGS`; without training.json it is unfinished."""
    record, history = folder / "training.json", folder / "history.jsonl"
    kind: type[ClassifierRecord | TrainingRecord]
    kind = ClassifierRecord if folder.name == "classifier" else TrainingRecord
    facts = read_record(kind, record, *TRAINING_RECORD) if record.is_file() else None
    settings_files = [path for path in (folder / f"{stage}.yaml" for stage in TRAININGS) if path.is_file()]
    # a variant that changed its kind keeps its old settings file
    name = getattr(facts, "stage", None) or max(settings_files, key=lambda path: path.stat().st_mtime).stem
    settings = read_yaml(folder / f"{name}.yaml")
    variant = "" if name == "classifier" else folder.parent.name
    stage = StageRun(
        " ".join(filter(None, (name, variant if variant not in (BASELINE, PRIOR) else "", f"seed{settings['seed']}"))),
        flatten_settings({name: settings[name]}),
        _tags(name, variant, settings, facts, facts.status if facts else "unfinished"),
        history.read_text(encoding="utf-8").splitlines() if history.is_file() else [],  # none of a checkpoint
        files={
            "model": sorted(folder.glob(model_of(folder).name)),
            "pictures": sorted(folder.glob("pictures/*.png")),
            "": sorted(folder.glob("training.json")),
        },
    )
    if facts is not None:
        stage.data = _inputs({facts.data: "training"})
        for key, value in dump(facts, exclude={"settings", "seed"}).items():
            stage.add(key if isinstance(value, dict) else f"training/{key}", value)
    if isinstance(facts, TrainingRecord):
        stage.note = _training_note(facts)
        if "events" in facts.model_fields_set:
            seen = [f"iteration {event.iteration}: {event.reason}: {event.action}" for event in facts.events]
            stage.tags["guard"] = ("; ".join(seen) or "quiet")[:TEXT]
            stage.curves["guard/events"] = [(event.iteration, number) for number, event in enumerate(facts.events, 1)]
        ended = record.stat().st_mtime
        stage.began, stage.ended = int((ended - facts.seconds) * 1000), int(ended * 1000)
    return stage


def _inputs(contexts: dict[str | None, str]) -> list[DataInput]:
    """The data sets of data/ whose hash is in `contexts`."""
    found = []
    for manifest in sorted(Path("data").glob("*/manifest.json")):
        content = manifest.read_bytes()
        if (digest := hashlib.sha256(content).hexdigest()) in contexts:
            found.append(DataInput(manifest.parent, digest, json.loads(content)["images"], contexts[digest]))
    return found


def _training_note(facts: TrainingRecord) -> str:
    """Note on a training of the energy: end, events and selection; empty for other trainings."""
    if (selection := facts.selection) is None:
        return ""
    lines = [f"**{facts.status}**; the model is the snapshot of iteration {selection.chosen}."]
    if facts.events:
        lines += ["", "| iteration | what the guard saw | what was done |", "| --- | --- | --- |"]
        lines += [f"| {event.iteration} | {event.reason} | {event.action} |" for event in facts.events]
    lines += ["", "| snapshot of iteration | distance | |", "| --- | --- | --- |"]
    for iteration, distance in selection.candidates.items():
        ends = {"chosen": selection.chosen, "last": selection.last}
        marks = [mark for mark, end in ends.items() if end == iteration]
        shown = "images that are not finite" if distance is None else f"{distance:.6g}"
        lines.append(f"| {iteration} | {shown} | {', '.join(marks)} |")
    return "\n".join([*lines, "", f"Rule: {selection.rule}."])[:TEXT]


def _evaluation(folder: Path) -> StageRun | None:
    """Metrics and settings of one variant with one seed; None if its models or its chain changed since."""
    run_folder = folder.parent
    experiment, variant, seed = run_folder.parts[-3:]
    facts = read_run(folder / "metrics.json")
    settings = read_yaml(folder / "evaluation.yaml")
    found = ({}, {"images": dump(facts.foreign)}, {}) if facts.foreign else _sources(run_folder, facts)
    if found is None:
        return None
    trainings, sampling, networks = found
    tags = _tags("evaluation", variant, {**settings, **sampling}, facts, "finished")
    stage = StageRun(
        f"evaluation {variant} {seed}",
        flatten_settings({**trainings, **sampling, "evaluation": settings["evaluation"]}),
        tags,
        files={"pictures": sorted(folder.glob("pictures/*.png")), "figures": [folder / "metrics.json"]},
        note="\n\n".join(f"No {metric}: {reason}." for metric, reason in facts.without.items())[:TEXT],
    )
    numbers = dump(facts, include={"metrics", "steps", "ood", "real"})
    for name, value in (numbers.pop("metrics") | numbers).items():
        stage.add(name, value)
    others = {} if facts.ood is None else {one.data: "out-of-distribution" for one in facts.ood.sets.values()}
    stage.data = _inputs({**others, facts.data: "evaluation"})
    if facts.foreign:
        return stage
    identity = {"networks": networks, "chain": dump(facts.chain)}
    kept = {name: tags[name] for name in ("variant", "seed", "data", "commit", "changed")}
    stage.model = RegisteredModel(
        f"vaebm-{experiment}-{variant}", run_folder, fingerprint(identity), {"experiment": experiment, **kept}
    )
    return stage


def _sources(run_folder: Path, facts: RunRecord) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]] | None:
    """Settings of the trainings and of the samples, and hashes of the networks; None if they changed since."""
    names = [BASELINE, PRIOR] if "prior" in facts.models else [BASELINE]
    runs = [run_folder, *(run_folder.parent.parent / name / run_folder.name for name in names)]
    records = [run / "training.json" for run in runs]
    if not all(record.is_file() for record in records):  # a training is running again
        return None
    own, *below = (read_record(TrainingRecord, record, *TRAINING_RECORD) for record in records)
    trained = {one.stage: one for one in ((*below, own) if own.stage in ("ebm", "prior") else (own,))}
    file = run_folder / "samples" / "samples.yaml"
    sampling = {"samples": read_yaml(file)["samples"]}
    chosen = validate(SamplesSettings, sampling["samples"], f"{file}: samples")
    of_energy: dict[str, Any] = {"potential": facts.chain.potential, "positives": facts.chain.positives}
    same_chain = ChainRecord(**chosen.chain.chosen, **of_energy, stretch=chosen.stretch) == facts.chain
    networks = {name: one.model for name, one in trained.items()}
    if not (same_chain and {*networks.values()} <= {*facts.models.values()}):
        return None
    return {name: one.settings for name, one in (("nvae", below[0]), *trained.items())}, sampling, networks


def experiment_run(results: Path) -> StageRun:
    """The experiment: the table's values, the table and the report."""
    name, table = results.name, results.parent / "benchmarks.json"
    variants = read_record(Numbers, table, "the table", "make it anew").root.get(name, {}) if table.is_file() else {}
    tags = {"stage": "experiment", "experiment": name, "status": "finished" if variants else "unfinished"}
    settings = Path("config", "experiments", f"{name}.yaml")
    if settings.is_file():
        tags["configuration"] = read_experiment(settings).hash()
    for path in sorted(results.glob("*/metrics.json")):
        facts = read_record(VariantRecord, path, *METRICS_RECORD)
        tags |= _texts(dump(facts, include={"configuration", "data", "commit", "changed"}))
        tags["seeds"] = " ".join(str(one.seed) for one in facts.runs)
    figures = {f"{variant}/{name}": value for variant, found in variants.items() for name, value in found.items()}
    files = [results.parent / file for file in TABLE if (results.parent / file).is_file()]
    data = _inputs({tags.get("data"): "training"})
    return StageRun(name, tags=tags, figures=figures, files={"": files} if variants else {}, data=data)


def flatten_settings(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow's parameters: nvae.network.channels → "32"."""
    parameters: dict[str, str] = {}
    for name, value in settings.items():
        key = f"{prefix}{name}"
        parameters |= flatten_settings(value, f"{key}.") if isinstance(value, dict) else {key: str(value)}
    return parameters


def _tags(
    stage: str,
    variant: str,
    settings: dict[str, Any],
    facts: ClassifierRecord | TrainingRecord | RunRecord | None,
    status: str,
) -> dict[str, str]:
    tags = {"stage": stage, "seed": str(settings["seed"]), "configuration": fingerprint(settings)}
    if variant:
        tags["variant"] = variant
    return tags | _texts({"status": status, **(dump(facts, include={"data", "commit", "changed"}) if facts else {})})


def _texts(values: dict[str, Any]) -> dict[str, str]:
    """Values as tags; booleans as in JSON and in the table."""
    texts = {}
    for name, value in values.items():
        text = " ".join(value) if isinstance(value, list) else str(value)
        texts[name] = text.lower() if isinstance(value, bool) else text[:TEXT]
    return texts


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
