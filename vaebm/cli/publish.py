"""A finished run as a folder for the Hugging Face hub, with a model card made from its record."""

from pathlib import Path

from vaebm.model import VAEBM
from vaebm.model.pretrained import model_card
from vaebm.records.files import METRICS_RECORD, read_record
from vaebm.records.metrics import format_value, with_direction
from vaebm.records.results import VariantRecord
from vaebm.report.rows import certainty
from vaebm.system.errors import UserError
from vaebm.system.files import seed_folder


def run(run_folder: Path, folder: Path, licence: str | None) -> None:
    """Write config.json, model.safetensors and README.md.

    Args:
        run_folder: results/<experiment>/<variant>, or …/seed<k>.
        licence: licence of the weights, for the card; None: not stated.

    Raises:
        UserError: there is no finished and evaluated run.
    """
    seed = seed_folder(run_folder)
    record = read_record(VariantRecord, seed.parent / "metrics.json", *METRICS_RECORD)
    if not (own := [one for one in record.runs if f"seed{one.seed}" == seed.name]):
        evaluated = ", ".join(f"seed{one.seed}" for one in record.runs)
        raise UserError(f"{seed}: expected one of the evaluated seeds {evaluated}, found another")
    rows = [
        (with_direction(name), format_value(name, one.value), certainty(name, one), f"{one.samples:,}")
        for name, one in record.metrics.items()
    ]
    model = VAEBM.from_results(seed)
    facts = {"record": record, "rows": rows, "licence": licence}
    facts |= {"seed": own[0].seed, "hashes": own[0].models, "training": own[0].training}
    model.save_pretrained(folder, model_card(model.config, **facts))
    print(f"{folder}: the model of {seed}; `VAEBM.from_pretrained` loads it")
