"""Plots of a run and their captions, in the order of the paper's figures."""

from pathlib import Path
from typing import NamedTuple

from vaebm.config import BASELINE
from vaebm.records.metrics import MODES, metric
from vaebm.records.results import VariantRecord

GRIDS = ("after", "before", "chain", "neighbours", "reconstructions", "samples", "sets")
"""Names of the plots that are grids of images, which are shown without smoothing."""


class Picture(NamedTuple):
    """A plot of the report."""

    title: str
    caption: str
    path: Path
    """Relative to the folder of the experiment's results."""
    wide: bool = False
    """Spans the whole width."""


def gallery(record: VariantRecord) -> list[Picture]:
    """The plots of the first seed of one variant."""
    variant, first = record.variant, record.runs[0]
    own = Path(variant, f"seed{first.seed}", "pictures")
    measured = own.parent / "evaluation" / "pictures"
    if variant == BASELINE:
        samples = "Decoder means of prior samples at temperature 1, no chain."
        pairs = (
            "Odd rows: held-out images. Even rows: their reconstructions, which do not predict the quality of samples."
        )
        curves = "In nats per image, for training and held-out images. Long curves: values (faint) and moving mean."
        pictures = [
            Picture("Samples of the NVAE", samples, measured / "samples.png"),
            Picture("Reconstructions", pairs, own / "reconstructions.png"),
        ]
        training = [Picture("Training of the NVAE", curves, own / "curves.png", wide=True)]
    elif "wgan" in first.training:
        samples = "Decoder means of prior samples, after the training of the decoder in the GAN."
        curves = "Critic outputs for real and generated images."
        pictures = [Picture("Samples of the generator", samples, measured / "samples.png")]
        training = [Picture("Training of the GAN", curves, own / "curves.png", wide=True)]
    else:
        start = "Start of the chains, before the first step."
        if record.chain.potential != "pixels":
            start = "Start of the chains: decoder means of prior samples at temperature 1."
        after = f"The same chains at the same places after {record.chain.steps} Langevin steps, without selection."
        chain = f"One chain per row: before the first step, then after each of the {record.chain.steps}."
        chains = (
            "Acceptance rate of a hypothetical Metropolis correction, autocorrelation of the energy, and distance from "
            "the start. No correction is applied."
        )
        curves = (
            "Contrastive divergence. Energies of data and chains should stay close. Only differences have a meaning."
        )
        pictures = [
            Picture("Before the chain", start, measured / "before.png"),
            Picture("After the chain", after, measured / "after.png"),
            Picture("Chains, step by step", chain, measured / "chain.png", wide=True),
        ]
        training = [
            Picture("Chains in figures", chains, own / "chains.png", wide=True),
            Picture("Training of the energy", curves, own / "curves.png", wide=True),
        ]
    if steps := first.steps:
        caption = (
            "Distance to the training images and mean energy against the number of steps, for the first samples. "
            "The line marks the test chain."
        )
        if steps.samples < record.metrics[steps.metric].samples:
            caption += " The distances are higher than in the table, because they use fewer images."
        pictures.append(Picture("Quality against the number of steps", caption, measured / "steps.png", wide=True))
    caption = (
        "One sample per row: the sample, its nearest training images by pixels, then by the extractor's features. "
        "A sample equal to its neighbour is memorised."
    )
    pictures.append(Picture("Nearest training images", caption, measured / "neighbours.png"))
    if MODES.pattern in record.metrics:
        caption = (
            "Samples per mode, most frequent first, and as many draws from the data's law. A curve that reaches zero "
            "early misses modes. The classifier determines the modes, with its errors."
        )
        pictures.append(Picture("Modes", caption, measured / "modes.png"))
    if "ebm" in first.training:
        caption = (
            "Energies of training images, held-out images, and chains at start and end. The end should overlap with "
            "the images. A gap between held-out and training images would indicate overfitting."
        )
        pictures.append(Picture("Energies", caption, own / "energies.png"))
    if any(metric(name).quantity == "AUROC" for name in record.metrics):
        sets = (
            "First row: held-out images. Below: the out-of-distribution sets, converted to the same size and levels by "
            "one rule, which leaves images of that size unchanged."
        )
        scores = (
            "Scores of held-out images (blue) and each set (orange). Higher scores are classified as in-distribution. "
            "The outermost bars include all values beyond."
        )
        pictures += [
            Picture("What the scores tell apart", sets, measured / "sets.png", wide=True),
            Picture("Out-of-distribution detection", scores, measured / "ood.png", wide=True),
        ]
    return [*pictures, *training]
