"""Conversion of results of earlier versions, whose models are model.pt: nothing is trained again, nothing removed."""

import base64
import json
import os
from pathlib import Path

from vaebm.system.checkpoint import load_model, save_model
from vaebm.system.errors import UserError
from vaebm.system.files import EARLIER_MODEL, MODEL, write_json


def convert_results(results: Path) -> None:
    """Write model.safetensors next to every model.pt under `results`, with its time.

    The records of Snakemake, in .snakemake next to `results`, get the new name.

    Raises:
        UserError: there is no folder `results`, or a model is damaged.
    """
    if not results.is_dir():
        raise UserError(f"{results}: expected the folder of the results, found none; give that of the experiments")
    earlier = sorted(results.rglob(EARLIER_MODEL))
    if not (unconverted := [path for path in earlier if not path.with_name(MODEL).is_file()]):
        print(f"{results}: nothing to convert")
    for path in unconverted:
        content, model = load_model(path), path.with_name(MODEL)
        plain = {key: value for key, value in content.items() if key not in ("weights", "hash", "header")}
        save_model(model, weights=content["weights"], **plain)
        os.utime(model, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
        print(f"{model}: converted from {path.name}")
    before = [path.relative_to(results.parent).as_posix() for path in earlier]
    names = {name: name.removesuffix(EARLIER_MODEL) + MODEL for name in before}
    for record in [path for path in (results.parent / ".snakemake" / "metadata").glob("*") if path.is_file()]:
        _rename_models(record, names)


def _rename_models(record: Path, names: dict[str, str]) -> None:
    """Rename models (earlier → present name) in a record of Snakemake: among its inputs, and as the output it names."""
    content, output = json.loads(record.read_text(encoding="utf-8")), base64.b64decode(record.name).decode()
    before = content.get("input") or []
    inputs = [names.get(name, name) for name in before]
    if inputs != before or output in names:
        checksums = {key: value for key, value in (content.get("input_checksums") or {}).items() if key not in names}
        name = base64.b64encode(names.get(output, output).encode()).decode()
        write_json(record.with_name(name), {**content, "input": inputs, "input_checksums": checksums})
