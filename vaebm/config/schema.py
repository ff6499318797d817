"""JSON Schema of the experiment files, for editors. To regenerate it:

python -m vaebm.config.schema > workflow/schemas/config.schema.json
"""

import json
import sys
from typing import Any

from vaebm.config import EBMSettings, Experiment, SamplesSettings, Settings

CHANGED_BY_VARIANTS: dict[str, type[Settings]] = {"ebm": EBMSettings, "samples": SamplesSettings}
"""Section of a variant that overrides some settings → model of the whole section."""


def schema() -> dict[str, Any]:
    """Schema of names, types, ranges and descriptions; `Experiment` checks how settings fit together."""
    whole = Experiment.model_json_schema()
    for section, model in CHANGED_BY_VARIANTS.items():
        all_of_it = model.model_json_schema(ref_template="#/$defs/{model}InVariant")
        for name, definition in {**all_of_it.pop("$defs"), model.__name__: all_of_it}.items():
            whole["$defs"][f"{name}InVariant"] = _optional(definition)
        field = whole["$defs"]["Variant"]["properties"][section]
        whole["$defs"]["Variant"]["properties"][section] = {
            "$ref": f"#/$defs/{model.__name__}InVariant",
            "description": field["description"],
        }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole}


def _optional(definition: dict[str, Any]) -> dict[str, Any]:
    """Schema of a group in which every setting is optional; it has no defaults, since the experiment's values apply."""
    if "properties" not in definition:  # a reference, or the settings of one plug-in or another
        return {key: [*map(_optional, value)] if key == "anyOf" else value for key, value in definition.items()}
    properties = {
        name: {key: value for key, value in field.items() if key != "default"}
        for name, field in definition["properties"].items()
    }
    return {**{key: value for key, value in definition.items() if key != "required"}, "properties": properties}


if __name__ == "__main__":
    sys.stdout.buffer.write((json.dumps(schema(), indent=2, ensure_ascii=False) + "\n").encode())
