"""A finished run as a folder for the Hugging Face hub, with a model card made from its record."""

from pathlib import Path

from vaebm.model import VAEBM
from vaebm.model.pretrained import card
from vaebm.records.files import METRICS_RECORD, read_record
from vaebm.records.metrics import format_value
from vaebm.records.results import MetricValue, VariantRecord
from vaebm.system.errors import UserError
from vaebm.system.files import seed_folder


def uncertainty(found: MetricValue) -> str:
    """Spread over the seeds, or the interval over the images, as text; empty: neither is known."""
    if found.spread is not None:
        return f"± {found.spread:.3g}"
    return "" if found.interval is None else f"{found.interval[0]:.4g} to {found.interval[1]:.4g}"


def run(run_folder: Path, folder: Path, licence: str | None) -> None:
    """Write config.json, model.safetensors and README.md.

    Args:
        run_folder: results/<experiment>/<variant>, or …/seed<k>.
        folder: output folder.
        licence: licence of the weights, for the card; None: not stated.

    Raises:
        UserError: there is no finished and evaluated run.
    """
    seed = seed_folder(run_folder)
    record = read_record(VariantRecord, seed.parent / "metrics.json", *METRICS_RECORD)
    own = [one for one in record.runs if f"seed{one.seed}" == seed.name]
    if not own:
        evaluated = ", ".join(f"seed{one.seed}" for one in record.runs)
        raise UserError(f"{seed}: expected one of the evaluated seeds {evaluated}, found another")
    rows = [
        (name, format_value(name, one.value), uncertainty(one), one.samples) for name, one in record.metrics.items()
    ]
    model = VAEBM.from_results(seed)
    facts = {"record": record, "rows": rows, "seed": own[0].seed, "hashes": own[0].models, "licence": licence}
    model.save_pretrained(folder, card(model.config, **facts))
    print(f"{folder}: the model of {seed}; `VAEBM.from_pretrained` loads it")
