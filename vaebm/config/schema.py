"""JSON Schema of the experiment files, for editors. To regenerate it:

python -m vaebm.config.schema > workflow/schemas/config.schema.json
"""

import json
import sys
from typing import Any

from vaebm.config.base import NAME
from vaebm.config.experiment import CHANGED_BY_VARIANTS, Experiment

BASE = {
    "description": "Experiment to start from: a file has only what differs. Lists and `variants` are replaced.",
    "pattern": f"^{NAME}$",
    "type": "string",
}


def schema() -> dict[str, Any]:
    """Schema of names, types, ranges and descriptions; `Experiment` checks what is missing and how settings fit."""
    whole = Experiment.model_json_schema()
    groups = whole["$defs"]
    sections = groups["Variant"]["properties"]
    for name, model in CHANGED_BY_VARIANTS.items():
        sections[name] = {"$ref": f"#/$defs/{model.__name__}", "description": sections[name]["description"]}
    for group in (whole, *groups.values()):
        group.pop("required", None)  # a base or the experiment may have it
    whole["properties"] = {"base": BASE, **whole["properties"]}
    choice = [{"required": [key]} for key in ("base", "data")]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "anyOf": choice, **whole}


if __name__ == "__main__":
    sys.stdout.buffer.write((json.dumps(schema(), indent=2, ensure_ascii=False) + "\n").encode())
