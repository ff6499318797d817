"""Pages of the reference that are made from the code. To write them: python docs/generate.py, or make docs."""

import json
import re
import textwrap
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import typer

from vaebm.cli import app
from vaebm.config.schema import schema
from vaebm.records.metrics import DETECTION, MEANINGS, SCORES, STANDARD_METRICS, other_extractors

ROOT = Path(__file__).parents[1]

Facts = dict[str, Any]
"""A part of the JSON Schema."""

COMMANDS = """\
# Commands

Generated from the command line by `make docs`. `python -m vaebm` is the same command.
"""

CONFIGURATION = """\
# Configuration

Generated from the settings in [vaebm/config](../../vaebm/config/experiment.py) by `make docs`.

An experiment file `config/experiments/NAME.yaml` has these sections. It states what differs from
the defaults, or from the experiment that `base` names. The pipeline needs the sections `data`,
`ebm`, `samples` and `evaluation`. The default of a group of settings that may be `null` is `null`.
[config/defaults.yaml](../../config/defaults.yaml) has the same settings as one file.
"""

METRICS = """\
# Metrics

Generated from [vaebm/records/metrics.py](../../vaebm/records/metrics.py) by `make docs`.

The arrow shows the better direction. `EXTRACTOR` is one of {extractors}.
`SET` is an out-of-distribution set: `turned`, `svhn`, or the name of your own files.
[Files](files.md) describes the files with the values.
"""

DETECTION_TEXT = """\
A score is high for images like the training images. `AUROC-SET` and the other names in the table
use log p(x) − E(x).
"""

SOURCES = {
    "extractor": "These compare samples with real images in the features of the extractor. With the standard Inception "
    "weights the names have no extractor, and the Fréchet distance is called FID. DINOv2 has no classes and no IS.",
    "classifier of modes": "These need a classifier of the modes of stacks (`stacked_digits`, `stacked_mnist`).",
    "images": "These need only images.",
    "model": "These need the model. Images of another program have no such values.",
    "clock": "Images of another program have no such value.",
}
"""What a metric is computed from → the sentence above its table."""

SCORES_TEXT = """\
A name with an ending, such as `AUROC-SET-energy`, uses another score:
"""


def table(*rows: tuple[str, ...]) -> str:
    """A table whose first row is its head; < (except in <br>) and | outside code are escaped."""
    escaped = {"<": "&lt;", "|": "\\|"}
    cells = [
        [re.sub(r"`[^`]*`|<br>|[<|]", lambda one: escaped.get(one[0], one[0]), text) for text in row] for row in rows
    ]
    rows_of_text = [" | ".join(re.sub(r"[ \n]+", " ", text).strip() for text in row) for row in cells]
    head, *body = [f"| {row} |\n" for row in rows_of_text]
    return "".join([head, "|" + "---|" * len(rows[0]) + "\n", *body])


def paragraph(text: str) -> str:
    """Lines of a paragraph."""
    return textwrap.fill(" ".join(text.split()), 100, break_long_words=False, break_on_hyphens=False) + "\n"


def commands() -> str:
    """Every command, with what its `--help` says."""

    def parts(command: Any, path: str, above: typer.Context | None = None) -> Iterator[str]:
        context = typer.Context(command, info_name=path, parent=above)
        if above:
            yield f"## `{path}`\n"
        yield paragraph(command.help)
        yield f"```text\n{path} {' '.join(command.collect_usage_pieces(context))}\n```\n"
        inner = {f"{path} {name}": one for name, one in getattr(command, "commands", {}).items()}
        if inner:
            yield table(
                ("command", "meaning"),
                *((f"[`{name}`](#{name.replace(' ', '-')})", inner[name].help) for name in inner),
            )
        if helps := [one for one in (each.get_help_record(context) for each in command.params) if one]:
            yield table(("argument or option", "meaning"), *((f"`{name}`", text) for name, text in helps))
        example = command.epilog.removeprefix("Example: ").strip("`")
        if len(example) > 80:
            example = re.sub(r" (?=--|\S+/shard-)", r" \\\n    ", example)
        yield f"```sh\n{example}\n```\n"
        for name, one in inner.items():
            yield from parts(one, name, context)

    return "\n".join([COMMANDS, *parts(typer.main.get_command(app), "vaebm")])


def group_of(facts: Facts) -> str:
    """Name of the group that a setting is, or "" for a value."""
    return next((one["$ref"].rpartition("/")[2] for one in (facts, *facts.get("anyOf", ())) if "$ref" in one), "")


def words(facts: Facts, groups: Facts) -> str:
    """Type of a setting, and its range."""
    if "enum" in facts:
        return ", ".join(f"`{value}`" for value in facts["enum"]) or "name"
    if choices := facts.get("anyOf") or facts.get("oneOf"):
        return " or ".join(words(choice, groups) for choice in choices)
    if "$ref" in facts:
        return f"{', '.join(f'`{name}`' for name in settings_of(groups[group_of(facts)]))} as a group"
    if "items" in facts:
        return f"list: {words(facts['items'], groups)}"
    name = {"string": "text", "boolean": "`true`, `false`", "null": "`null`"}.get(facts.get("type", ""))
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {facts[key]:g}" for key, sign in signs.items() if key in facts]
    return " ".join([name or facts.get("type", "value"), ", ".join(bounds)]).strip()


def settings_of(group: Facts) -> Facts:
    """Settings of a group; a checkpoint is one, or a text."""
    return group["properties"] if "properties" in group else group["anyOf"][1]["properties"]


def configuration() -> str:
    """Every setting of an experiment file: type, default, meaning."""
    whole = schema()
    groups, explained = whole["$defs"], dict[str, str]()

    def parts(key: str, sentence: str, settings: Facts) -> Iterator[str]:
        yield f"{'###' if '.' in key else '##'} {key}\n"
        yield paragraph(sentence)
        rows, inner = [("setting", "meaning, type, default")], []
        for name, facts in settings.items():
            group, path = group_of(facts), f"{key}.{name}"
            sentence = facts.get("description") or groups.get(group, {}).get("description", "")
            sentence = sentence.replace("None:", "`null`:")
            default = f"default `{json.dumps(facts['default'])}`" if "default" in facts else "required"
            if group and group not in explained:
                explained[group] = path
                if isinstance(facts.get("default"), str):
                    sentence = f"{sentence} A name alone is enough; {default}."
                inner.append((path, sentence, settings_of(groups[group])))
            elif group:
                link = explained[group]
                rows.append((f"`{name}`", f"{sentence} Settings of [{link}](#{re.sub(r'[^a-z_]', '', link.lower())})."))
            else:
                rows.append((f"`{name}`", f"{sentence}<br>{words(facts, groups)}; {default}"))
        if rows[1:]:
            yield table(*rows)
        for one in inner:
            yield from parts(*one)

    text = [CONFIGURATION]
    for name, facts in whole["properties"].items():
        if group := group_of(facts) or group_of(*facts.get("patternProperties", {"": {}}).values()):
            key = "variants.NAME" if name == "variants" else name
            explained[group] = key
            sentence = facts.get("description") or groups[group]["description"]
            text += parts(key, sentence, settings_of(groups[group]))
        else:
            text += [f"## {name}\n", paragraph(facts["description"])]
    return "\n".join(text)


def metrics() -> str:
    """Every metric: names with the better direction, meaning."""
    text = [METRICS.format(extractors=", ".join(f"`{one}`" for one in other_extractors()))]
    for title, family in groupby(STANDARD_METRICS, key=lambda one: one.family):
        found = list(family)
        text += [
            f"## {title}\n",
            *(paragraph(SOURCES[one]) for one in dict.fromkeys(one.measured_with for one in found)),
        ]
        full = [DETECTION[measure, ""] for measure in MEANINGS]
        detects = full[0] in found
        rows = [("name", "meaning, unit, range")]
        for one in full if detects else found:
            names = dict.fromkeys([one.standard or one.named("SET"), one.named("EXTRACTOR" if one.standard else "SET")])
            rows.append((f"{', '.join(f'`{name}`' for name in names)}\N{NO-BREAK SPACE}{one.better}", one.sentence))
        text += [DETECTION_TEXT, table(*rows), SCORES_TEXT] if detects else [table(*rows)]
        if detects:
            text += [table(("ending", "score"), *((f"`-{name}`", formula) for name, formula in SCORES.items() if name))]
    return "\n".join(text)


def files() -> str:
    """results/README.md, with links from this folder."""
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    return text.replace("](../docs/reference/", "](").replace("](../", "](../../")


PAGES: dict[str, Callable[[], str]] = {
    f"docs/reference/{one.__name__}.md": one for one in (commands, configuration, metrics, files)
}

if __name__ == "__main__":
    for path, page in PAGES.items():
        (ROOT / path).write_text(page(), encoding="utf-8", newline="\n")
