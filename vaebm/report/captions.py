"""The pictures that a run should have, in the order of the paper's figures, each with what there is to see in it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from vaebm.config import BASELINE
from vaebm.records.metrics import Record, distance_of

GRIDS = ("after", "before", "chain", "neighbours", "reconstructions", "samples", "sets")
"""Names of the pictures that are grids of images."""


class Picture(NamedTuple):
    """A picture of the page."""

    title: str
    caption: str
    path: Path
    """Below the folder of the experiment's results."""
    wide: bool = False
    """Over the whole width."""

    @property
    def grid(self) -> bool:
        """Whether it is images in a grid, whose pixels have to stay sharp, and not curves."""
        return self.path.stem in GRIDS


def gallery(record: Record) -> list[Picture]:
    """The pictures of the first seed of one variant."""
    variant, first = record["variant"], record["runs"][0]
    own = Path(variant, f"seed{first['seed']}", "pictures")
    measured = own.parent / "evaluation" / "pictures"
    if variant == BASELINE:
        pictures = _nvae(own, measured)
    elif "wgan" in first["training"]:
        pictures = [
            Picture(
                "Samples of the generator",
                "Decoder means for draws of the prior, after the decoder's training in the GAN.",
                measured / "samples.png",
            )
        ]
    else:
        pictures = _energy(own, measured, record)
    if first["steps"]:
        taken = "The chains of the first samples after more and more steps: distance of their images to the training images, and their mean energy."
        fewer = first["steps"]["samples"] < record["metrics"][distance_of(record)]["samples"]
        line = f"The line marks the test chain.{' Of fewer images than the distances in the table, and higher than those for it.' if fewer else ''}"
        pictures.append(
            Picture("Quality against the number of steps", f"{taken} {line}", measured / "steps.png", wide=True)
        )
    nearest = "A sample a row: left the sample, then the training images nearest to it in pixels, then those nearest in the extractor's features."
    near = "A sample that equals its neighbour was learnt by heart; a few samples show no rate of it."
    pictures.append(Picture("Nearest training images", f"{nearest} {near}", measured / "neighbours.png"))
    if "modes" in record["metrics"]:
        modes = "Samples in each mode, the most frequent mode first, beside as many draws from the data's law. A curve that reaches zero early misses modes."
        pictures.append(
            Picture("Modes", f"{modes} The classifier tells the modes, its mistakes included.", measured / "modes.png")
        )
    if "ebm" in first["training"]:
        energies = "Training images, held-out images, and chains at their start and end. The end should lie where the images do; held-out images apart from"
        pictures.append(Picture("Energies", f"{energies} training images would be overfitting.", own / "energies.png"))
    if any(metric.startswith("AUROC") for metric in record["metrics"]):
        sets = "The first row is held out; the sets below are brought to its size and levels by one rule, which leaves images of that size as they are."
        scores = "Held-out images against each set; the higher score is taken for in-distribution, so blue should stand to the right of orange."
        pictures += [
            Picture("What the scores tell apart", sets, measured / "sets.png", wide=True),
            Picture(
                "Out-of-distribution detection",
                f"{scores} The outermost bars count all that lies beyond.",
                measured / "ood.png",
                wide=True,
            ),
        ]
    return [*pictures, *_training(own, record)]


def _nvae(own: Path, measured: Path) -> list[Picture]:
    """What the NVAE alone makes."""
    shown = "Held-out images in the odd rows, below each what the NVAE makes of it. Good reconstructions alone promise no good samples."
    return [
        Picture(
            "Samples of the NVAE",
            "Decoder means for draws of the prior at temperature 1, no chain.",
            measured / "samples.png",
        ),
        Picture("Reconstructions", shown, own / "reconstructions.png"),
    ]


def _energy(own: Path, measured: Path, record: Record) -> list[Picture]:
    """What the chain makes of the NVAE's samples."""
    steps, pixels = record["chain"]["steps"], record["chain"]["potential"] == "pixels"
    start = (
        "Where the chains start, before the first step."
        if pixels
        else "Decoder means where the chains start: draws of the NVAE's prior at temperature 1."
    )
    after = f"The same chains, place by place, after {steps} Langevin steps: the same noise moved, no other draw and no selection."
    chain = f"One chain a row: before the first step, then after each of the {steps}."
    return [
        Picture("Before the chain", start, measured / "before.png"),
        Picture("After the chain", after, measured / "after.png"),
        Picture("Chains, step by step", chain, measured / "chain.png", wide=True),
    ]


def _training(own: Path, record: Record) -> list[Picture]:
    """How the training went."""
    if record["variant"] == BASELINE:
        nats = "In nats per image, held-out images beside the training's. Long curves: every value, faint, and a moving mean."
        return [Picture("Training of the NVAE", nats, own / "curves.png", wide=True)]
    if "wgan" in record["runs"][0]["training"]:
        return [
            Picture(
                "Training of the GAN",
                "What the critic tells data from generated images by.",
                own / "curves.png",
                wide=True,
            )
        ]
    chains = "Acceptance that a Metropolis correction of the same steps would have, memory of the energy, and how far the chains move. None is applied."
    curves = "Contrastive divergence: the energies of data and of chains should stay close together. Their level means nothing, only their difference does."
    return [
        Picture("Chains in figures", chains, own / "chains.png", wide=True),
        Picture("Training of the energy", curves, own / "curves.png", wide=True),
    ]
