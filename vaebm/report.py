"""The page results/report.html: one file that needs nothing beside it; pictures are inlined."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from vaebm.config import BASELINE
from vaebm.paper import Paper
from vaebm.table import LEGEND, MEASURED_HEADER, Measured, measured_cells, overview, paper_cells, paper_header, real_images, snapshots, without


def _inline(path: Path) -> str | None:
    """A PNG as a data URL; None where there is none."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode() if path.is_file() else None


class Picture(NamedTuple):
    """A picture of the page."""

    title: str
    caption: str
    path: Path
    wide: bool = False
    """Over the whole width."""


def _pictures(folder: Path, variant: str, seed: int, record: dict[str, Any]) -> list[dict[str, Any]]:
    """The pictures of one variant's first seed, those that there are, inlined."""
    own, evaluation = folder / variant / f"seed{seed}" / "pictures", folder / variant / f"seed{seed}" / "evaluation" / "pictures"
    scores = "Held-out images against other pictures; the higher score is taken for in-distribution. The outermost bars count all that lies beyond."
    if variant == BASELINE:
        sets = "What the held-out images (first row) are told from, each brought to their size and grey levels in the same way."
        wanted = [
            Picture("Samples of the NVAE", "Decoder means for draws of the prior, no chain.", evaluation / "samples.png"),
            Picture("Reconstructions", "Held-out images in the odd rows, below each what the NVAE makes of it.", own / "reconstructions.png"),
            Picture("Training of the NVAE", "Nats per image. Long curves: every value, faint, and a moving mean.", own / "curves.png", wide=True),
            Picture("Other pictures", sets, evaluation / "sets.png"),
        ]
    elif not record["chain"]["steps"]:
        wanted = [
            Picture("Samples of the generator", "Decoder means for draws of the prior, after the decoder's training in the GAN.", evaluation / "samples.png"),
            Picture("Training of the GAN", "What the critic tells data from generated images by.", own / "curves.png", wide=True),
        ]
    else:
        steps = record["chain"]["steps"]
        after = f"The same chains, image by image, after {steps} Langevin steps."
        energies = "Training images, held-out images and chains after training: data of both kinds should coincide."
        chains = "Acceptance that a Metropolis correction of the same steps would have, memory of the energy, and how far the chains move."
        curves = "Contrastive divergence: the energies of data and of chains should stay close together."
        wanted = [
            Picture("Before the chain", "Decoder means at the start of the chains: draws of the NVAE's prior.", evaluation / "before.png"),
            Picture("After the chain", after, evaluation / "after.png"),
            Picture("Chains, image by image", f"One chain a row: before the first step, then after each of the {steps}.", evaluation / "chain.png"),
            Picture("Energies", energies, own / "energies.png"),
            Picture("Chains in figures", chains, own / "chains.png", wide=True),
            Picture("Training of the energy", curves, own / "curves.png", wide=True),
        ]
    wanted.append(Picture("Out-of-distribution detection", scores, evaluation / "ood.png", wide=True))
    return [{**picture._asdict(), "url": url} for picture in wanted if (url := _inline(picture.path))]


def _code(text: str) -> Markup:
    """Text with its backticks made <code>."""
    parts = str(text).split("`")
    return Markup("").join(Markup("<code>{}</code>").format(part) if index % 2 else escape(part) for index, part in enumerate(parts))


def _training(record: dict[str, Any]) -> list[str]:
    """How the variant's own training ended, one line a seed."""
    told = []
    for run in record["runs"]:
        stage = list(run["training"])[-1]  # an energy's own training comes after its NVAE's
        if training := run["training"][stage]:
            facts = [f"{name} {training[name]}" for name in ("status", "steps", "snapshot", "skipped_steps", "seconds") if name in training]
            told.append(f"seed {run['seed']}, {stage}: {', '.join(facts).replace('_', ' ')}")
            told += [f"seed {run['seed']}, iteration {event['iteration']}: {event['reason']}: {event['action']}" for event in training.get("events", [])]
    return told


def page(measured: Measured, paper: Paper, experiments: Path, results: Path) -> str:
    """The page: every measured experiment with its figures and pictures, then the paper's tables."""
    sections = []
    for experiment, variants in measured.records.items():
        shown = {
            variant: {"pictures": _pictures(results / experiment, variant, record["runs"][0]["seed"], record), "training": _training(record)}
            for variant, record in variants.items()
        }
        header, rows = overview(variants)
        sections.append(
            {
                "name": experiment,
                "header": header,
                "rows": rows,
                "remarks": [real_images(next(iter(variants.values()))), *without(variants), *snapshots(variants)],
                "variants": shown,
                "origin": [cells for record in variants.values() for cells in measured_cells(record)],
            }
        )
    tables = [
        {
            "title": table.title,
            "note": table.note,
            "header": paper_header(table),
            "rows": [paper_cells(table, row, measured, experiments) for row in table.rows],
        }
        for table in paper.tables
    ]
    environment = Environment(loader=PackageLoader("vaebm"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["code"] = _code
    return environment.get_template("report.html.j2").render(
        sections=sections, notes=measured.notes, tables=tables, legend=LEGEND, origin_header=MEASURED_HEADER
    )
