"""What there is of an experiment to mirror: parameters, tags, curves, figures and files of every run, read from its results.

The same names everywhere: a parameter is called as in the experiment file (`nvae.training.batch`), a metric as in the
table (`FD-classifier`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vaebm.config import BASELINE, SamplesSettings, fingerprint
from vaebm.config.yaml_files import read_experiment, read_yaml, validate

TABLE = ("benchmarks.csv", "benchmarks.md", "benchmarks.tex", "benchmarks.json", "report.html")

TRAININGS = ("classifier", "nvae", "ebm", "wgan")
"""Stages that leave a history, each with its settings file of the same name."""

NO_FIGURES = (
    "experiment",
    "variant",
    "seed",
    "metrics",
    "without",
    "extractor",
    "modes_by",
    "chain",
    "data",
    "users",
    "commit",
    "changed",
    "versions",
    "models",
    "training",
)
"""Keys of metrics.json that say where its figures come from; everything beside them is figures of its own."""

TEXT = 5000
"""Characters of a tag or a note; beyond, MLflow refuses it or cuts it off."""

Curve = list[tuple[int, float]]
"""Values against a step: an iteration, or the number of steps of a chain."""


@dataclass(frozen=True)
class Model:
    """A finished model for the registry."""

    name: str
    """vaebm-<experiment>-<variant>."""
    folder: Path
    """Its run: results/<experiment>/<variant>/seed<k>."""
    hash: str
    """Of its networks and its chain: another one is another version."""
    tags: dict[str, str]


@dataclass
class Stage:
    """What there is to mirror of one stage run, or of the whole experiment."""

    name: str
    parameters: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)
    """Lines of history.jsonl, which grows."""
    figures: dict[str, float] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    """Further metrics against a step, known when the stage has ended."""
    files: dict[str, list[Path]] = field(default_factory=dict)
    note: str = ""
    """Markdown, the first thing on the run's page."""
    began: float | None = None
    ended: float | None = None
    """Seconds since 1970; None: not known."""
    model: Model | None = None

    def continues(self, place: dict[str, Any]) -> bool:
        """Whether what stands in MLflow is the beginning of this, and not of a run with other settings or other numbers."""
        lines = self.history[: place["lines"]]
        same_figures = not place["figures"] or place["figures"] == self.figures
        same_curves = place["curves"] in ("", fingerprint(self.curves))
        return (
            place["parameters"] == fingerprint(self.parameters)
            and place["history"] == fingerprint(lines)
            and same_figures
            and same_curves
        )

    def add(self, name: str, value: Any) -> None:
        """Take in every number in plain values from a file, under names joined by slashes.

        A number, or a dictionary with a `value`, is a figure; the latter's `interval` makes two more, interval/<name>-low
        and -high. A list of numbers is a curve, and so is a dictionary from iterations to numbers; null, what was not finite,
        is a gap in it. Lists beside each other count the same steps: those under `counts`, or else they end at the same one,
        and the longest begins at 0.
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
                self.curves[f"{name}/{key}"] = [
                    (int(step), float(number)) for step, number in points if number is not None
                ]
            for key, one in value.items():
                self.add(f"{name}/{key}", one)


def stages(results: Path) -> list[Stage]:
    """Every stage run that has something to show, in the order in which they ran."""
    trained = [*results.glob("classifier/history.jsonl"), *sorted(results.glob("*/seed*/history.jsonl"))]
    found = [_training(path.parent) for path in trained]
    seeds = sorted(
        results.glob("*/seed*/evaluation/metrics.json"),
        key=lambda path: (path.parts[-4], len(path.parts[-3]), path.parts[-3]),
    )
    shown = set[str]()
    for path in seeds:
        stage = _evaluation(path.parent)
        variant = path.parts[-4]
        if (
            variant in shown and stage is not None
        ):  # the first seed's model stands for the variant, as in VAEBM.from_results
            stage.model = None
        shown.add(variant)
        found += [] if stage is None else [stage]
    return found


def _training(folder: Path) -> Stage:
    """A run of one of `TRAININGS`; before its training.json is there it is under way, or was stopped."""
    facts: dict[str, Any] = (
        read_json(folder / "training.json") if (folder / "training.json").is_file() else {"status": "unfinished"}
    )
    settings_files = [path for path in (folder / f"{stage}.yaml" for stage in TRAININGS) if path.is_file()]
    # a variant that became another kind of model keeps the settings file of the kind that it was
    name = facts.get("stage") or max(settings_files, key=lambda path: path.stat().st_mtime).stem
    settings = read_yaml(folder / f"{name}.yaml")
    variant = "" if name == "classifier" else folder.parent.name
    stage = Stage(
        " ".join(filter(None, (name, variant if variant != BASELINE else "", f"seed{settings['seed']}"))),
        flat({name: settings[name]}),
        _tags(name, variant, settings, facts),
        (folder / "history.jsonl").read_text().splitlines(),
        files={
            "model": sorted(folder.glob("model.pt")),
            "pictures": sorted(folder.glob("pictures/*.png")),
            "": sorted(folder.glob("training.json")),
        },
        note=_told(facts),
    )
    for key, value in facts.items():
        if key not in ("settings", "seed"):
            stage.add(key if isinstance(value, dict) else f"training/{key}", value)
    if "events" in facts:
        events = facts["events"]
        stage.tags["guard"] = (
            "; ".join(f"iteration {event['iteration']}: {event['reason']}: {event['action']}" for event in events)
            or "quiet"
        )[:TEXT]
        stage.curves["guard/events"] = [(event["iteration"], number) for number, event in enumerate(events, 1)]
    if "seconds" in facts:
        stage.ended = (folder / "training.json").stat().st_mtime
        stage.began = stage.ended - facts["seconds"]
    return stage


def _told(facts: dict[str, Any]) -> str:
    """How a training of the energy went, for its page: its end, what the guard saw, which snapshot is the model; empty for other trainings."""
    if "selection" not in facts:
        return ""
    selection, events = facts["selection"], facts.get("events", [])
    lines = [f"**{facts['status']}**; the model is the snapshot of iteration {selection['chosen']}."]
    if events:
        lines += ["", "| iteration | what the guard saw | what was done |", "| --- | --- | --- |"]
        lines += [f"| {event['iteration']} | {event['reason']} | {event['action']} |" for event in events]
    lines += ["", "| snapshot of iteration | distance | |", "| --- | --- | --- |"]
    for iteration, distance in selection["candidates"].items():
        marks = [mark for mark in ("chosen", "last") if selection[mark] == int(iteration)]
        lines.append(
            f"| {iteration} | {'images that are not finite' if distance is None else f'{distance:.6g}'} | {', '.join(marks)} |"
        )
    return "\n".join([*lines, "", f"Rule: {selection['rule']}."])[:TEXT]


def _evaluation(folder: Path) -> Stage | None:
    """The figures of one variant with one seed, with every setting that they depend on; None if its models, its chain or its stretch are others since."""
    run_folder = folder.parent
    experiment, variant, seed = run_folder.parts[-3:]
    facts = read_json(folder / "metrics.json")
    records = [run / "training.json" for run in (run_folder, run_folder.parent.parent / BASELINE / seed)]
    if not all(record.is_file() for record in records):  # a training is under way again
        return None
    own, nvae = map(read_json, records)
    trained = {one["stage"]: one for one in ((nvae, own) if own["stage"] == "ebm" else (own,))}
    settings, sampling = read_yaml(folder / "evaluation.yaml"), read_yaml(run_folder / "samples" / "samples.yaml")
    same_models = {one["model"] for one in trained.values()} <= set(facts["models"].values())
    chosen = validate(SamplesSettings, sampling["samples"], f"{run_folder / 'samples' / 'samples.yaml'}: samples")
    chain = {**chosen.chain.model_dump(), "stretch": chosen.stretch, "potential": facts["chain"].get("potential")}
    if not (same_models and chain == facts["chain"]):
        return None
    sections = {name: one["settings"] for name, one in (("nvae", nvae), *trained.items())}
    tags = _tags("evaluation", variant, {**settings, **sampling}, {"status": "finished", **facts})
    stage = Stage(
        f"evaluation {variant} {seed}",
        flat({**sections, "samples": sampling["samples"], "evaluation": settings["evaluation"]}),
        tags,
        files={"pictures": sorted(folder.glob("pictures/*.png")), "figures": [folder / "metrics.json"]},
        note="\n\n".join(f"No {metric}: {reason}." for metric, reason in facts["without"].items())[:TEXT],
    )
    for name, value in facts["metrics"].items():
        stage.add(name, value)
    for name, value in facts.items():
        if name not in NO_FIGURES:
            stage.add(name, value)
    identity = {"networks": {name: one["model"] for name, one in trained.items()}, "chain": facts["chain"]}
    kept = {name: tags[name] for name in ("variant", "seed", "data", "commit", "changed")}
    stage.model = Model(
        f"vaebm-{experiment}-{variant}", run_folder, fingerprint(identity), {"experiment": experiment, **kept}
    )
    return stage


def whole(results: Path) -> Stage:
    """The experiment: the table's figures, the table and the report."""
    name, table = results.name, results.parent / "benchmarks.json"
    variants = read_json(table).get(name, {}) if table.is_file() else {}
    tags = {"stage": "experiment", "experiment": name, "status": "finished" if variants else "unfinished"}
    settings = Path("config", "experiments", f"{name}.yaml")
    if settings.is_file():
        tags["configuration"] = read_experiment(settings).hash()
    for path in sorted(results.glob("*/metrics.json")):
        facts = read_json(path)
        tags |= {
            "data": str(facts["data"]),
            "commit": " ".join(facts["commit"]),
            "changed": str(facts["changed"]).lower(),
        }
        tags["seeds"] = " ".join(str(one["seed"]) for one in facts["runs"])
    figures = {
        f"{variant}/{metric}": float(value)
        for variant, metrics in variants.items()
        for metric, value in metrics.items()
        if value is not None
    }
    files = [results.parent / file for file in TABLE if (results.parent / file).is_file()]
    return Stage(name, tags=tags, figures=figures, files={"": files} if variants else {})


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow's parameters: nvae.network.channels → "32"."""
    parameters: dict[str, str] = {}
    for name, value in settings.items():
        parameters |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": str(value)}
    return parameters


def read_json(path: Path) -> dict[str, Any]:
    """An object in a JSON file."""
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def _tags(stage: str, variant: str, settings: dict[str, Any], facts: dict[str, Any]) -> dict[str, str]:
    tags = {"stage": stage, "seed": str(settings["seed"]), "configuration": fingerprint(settings)}
    if variant:
        tags["variant"] = variant
    # booleans as JSON writes them, like the table
    commits = facts.get("commit")
    facts = facts | {"commit": " ".join(commits)} if isinstance(commits, list) else facts
    found = {name: facts[name] for name in ("status", "data", "commit", "changed") if name in facts}
    return tags | {
        name: str(value).lower() if isinstance(value, bool) else str(value)[:TEXT] for name, value in found.items()
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
