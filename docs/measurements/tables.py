"""Records of measured runs (records/*.json), and the tables that the pages draw from them.

    python docs/measurements/tables.py record digits results/digits --machine '2 cores of …'
    python docs/measurements/tables.py                # writes the tables of all pages again

A record contains each seed's figures of one experiment. For seeds that were run in several projects, give each folder.
In a page, the lines between `<!-- table: KIND RECORD … -->` and `<!-- end -->` are written by the function KIND.
"""

import argparse
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, stdev
from textwrap import fill
from typing import Any

from vaebm.records.metrics import format_value, number, with_direction

HERE = Path(__file__).parent
Record = dict[str, Any]


def record(folders: list[Path], machine: str, command: str | None) -> Record:
    """The record of an experiment, from its folders in `results/`."""
    files = [path for folder in folders for path in sorted(folder.glob("*/metrics.json"))]
    found = [json.loads(path.read_text()) for path in files]
    seeds = sorted({run["seed"] for one in found for run in one["runs"]})
    variants: Record = {}
    for one in found:
        variant = variants.setdefault(one["variant"], {"chain": one["chain"], "metrics": {}, "steps": {}})
        for name, value in one["metrics"].items():
            figures = variant["metrics"].setdefault(name, {"samples": value["samples"]})
            figures |= {str(each["seed"]): [each["value"], *(each["interval"] or [])] for each in value["by_seed"]}
        variant["steps"] |= {str(run["seed"]): run["steps"] for run in one["runs"] if run.get("steps")}
    chosen = f"'experiments=[{folders[0].name}]' 'seeds=[{','.join(map(str, seeds))}]'"
    changed = " with changed files" if any(one["changed"] for one in found) else ""
    return {
        "commit": ", ".join(sorted({commit[:7] for one in found for commit in one["commit"]})) + changed,
        "date": datetime.fromtimestamp(max(path.stat().st_mtime for path in files), UTC).date().isoformat(),
        "machine": machine,
        "command": command or f"snakemake --cores all --config {chosen}",
        "torch": found[0]["versions"]["torch"],
        "seeds": seeds,
        "variants": variants,
    }


def figures_of(found: Record, variant: str, name: str) -> list[list[float]]:
    """Value, or value and interval, of each seed. KL-excess: KL − KL-floor. NAME/nvae: the ratio to the NVAE's."""
    if name.endswith("/nvae"):
        pairs = zip(*(figures_of(found, key, name.removesuffix("/nvae")) for key in (variant, "nvae")), strict=True)
        return [] if variant == "nvae" else [[one[0] / base[0]] for one, base in pairs]
    if name == "KL-excess":
        pairs = zip(*(figures_of(found, variant, key) for key in ("KL", "KL-floor")), strict=True)
        return [[one[0] - floor[0]] for one, floor in pairs]
    of = found["variants"][variant]["metrics"].get(name, {})
    return [of[str(seed)] for seed in found["seeds"] if str(seed) in of]


def origin(found: Record) -> list[str]:
    """Where the figures come from."""
    texts = [
        f"Commit {found['commit']}, torch {found['torch']}, {found['date']}.",
        f"Machine: {found['machine']}.",
        f"To repeat: `{found['command']}`.",
    ]
    return [fill(f"- {text}", 100, subsequent_indent="  ", break_on_hyphens=False) for text in texts]


def values(found: Record, *names: str) -> list[str]:
    """Figures of all variants: of one seed with the interval over images; of several by seed, and mean ± deviation."""
    several = len(found["seeds"]) > 1
    variants = {key: {"nvae": "NVAE", "vaebm": "VAEBM"}.get(key, f"`{key}`") for key in found["variants"]}
    seeds_and_mean = [*(f"seed {seed}" for seed in found["seeds"]), "mean ± deviation"]
    table = [["", *(seeds_and_mean if several else variants.values())]]
    for name in names:
        base = re.sub("/nvae|-excess", "", name)
        label = with_direction(base).replace(base, name.replace("/nvae", ", ratio to the NVAE"))
        of = {key: figures_of(found, key, name) for key in variants}
        for key, seeds in of.items() if several else ():
            cells = [format_value(base, one[0]) for one in seeds]
            spread = [f"{number(mean(one))} ± {number(stdev(one), 2)}" for one in zip(*seeds, strict=False)][:1]
            table += [[f"{label}, {variants[key]}", *cells, *spread]] if seeds else []
        if not several:
            shown = [[format_value(base, each) for each in one[0]] if one else [""] for one in of.values()]
            table.append([label, *(one + (f" [{', '.join(bounds)}]" if bounds else "") for one, *bounds in shown)])
    return rows(table)


def chain(found: Record, variant: str, name: str) -> list[str]:
    """Distance `name` after each number of Langevin steps, for each seed."""
    steps = found["variants"][variant]["steps"].items()
    head = ["steps", *map(str, next(one["counts"] for _, one in steps))]
    return rows([head, *([f"seed {seed}", *map(number, one[name])] for seed, one in steps)])


def rows(table: list[list[str]]) -> list[str]:
    """The lines of a table, whose first row is the head."""
    lines = [f"| {' | '.join(row)} |" for row in table]
    return [lines[0], "|---" * len(table[0]) + "|", *lines[1:]]


def written(page: str) -> str:
    """A page with its tables written from the records."""

    def table(match: re.Match[str]) -> str:
        kind, name, *rest = match[1].split()
        found = json.loads((HERE / "records" / f"{name}.json").read_text())
        lines = {"origin": origin, "values": values, "chain": chain}[kind](found, *rest)
        return "\n".join([f"<!-- table: {match[1]} -->", "", *lines, "", "<!-- end -->"])

    return re.sub(r"^<!-- table: (.+?) -->.*?^<!-- end -->", table, page, flags=re.DOTALL | re.MULTILINE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    recording = parser.add_subparsers().add_parser("record", help="take the figures of a finished experiment")
    recording.add_argument("name", help="name of the record")
    recording.add_argument("folders", nargs="+", type=Path, help="results/<experiment>, one or more")
    recording.add_argument("--machine", required=True, help="processor, cores, memory, and what else ran")
    recording.add_argument("--command", help="what was typed (default: snakemake with experiment and seeds)")
    asked = parser.parse_args()
    if "name" in asked:
        text = json.dumps(record(asked.folders, asked.machine, asked.command), indent=1, ensure_ascii=False)
        text = re.sub(r"\[[^\[\]{}]*\]", lambda numbers: re.sub(r"\s+", " ", numbers[0]), text)  # a list in a line
        (HERE / "records" / f"{asked.name}.json").write_text(text + "\n")
    for path in sorted(HERE.glob("*.md")):
        path.write_text(written(path.read_text()))
