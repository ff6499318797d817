"""config/defaults.yaml: every setting with its default and its sentence. To regenerate it:

python -m vaebm.config.defaults > config/defaults.yaml
"""

import json
import sys
import textwrap
from collections.abc import Iterator

from pydantic import BaseModel

from vaebm.config.experiment import Experiment, Variant
from vaebm.config.layers import group_of

INTRODUCTION = """\
# Every setting of an experiment file with its default. Written by `python -m vaebm.config.defaults`, never read.
# Lines that begin with # are required settings, and the settings of optional groups, which are null by default.
# The sections ebm, samples and evaluation are optional too; the pipeline needs them.
# With `base: NAME` a file starts from another experiment, and only what neither has is the default.
"""


def defaults() -> str:
    """The text of the file."""
    return INTRODUCTION + "\n".join(_lines(Experiment, 0, "", set())) + "\n"


def _lines(model: type[BaseModel], indent: int, mark: str, explained: set[type[BaseModel]]) -> Iterator[str]:
    """The settings of `model`, each explained at the model's first use; lines begin with `mark`."""
    new = model not in explained
    explained.add(model)
    start = mark + " " * indent
    for name, field in model.model_fields.items():
        group = group_of(field.annotation)
        if not indent:
            yield ""
        sentence = field.description or (group.__doc__ if group else "") or ""
        if new:
            yield from (f"{start}# {line}" for line in textwrap.wrap(" ".join(sentence.split()), 118 - len(start)))
        if name == "variants":
            yield from (f"{start}variants:", f"{start}  vaebm:")
            yield from _lines(Variant, indent + 4, mark, explained)
        elif group is None:
            value = " required" if field.is_required() else f" {json.dumps(field.get_default()).strip(chr(34))}"
            yield f"{'# ' * (field.is_required() and not mark)}{start}{name}:{value}"
        else:
            given = isinstance(field.get_default(), BaseModel) or field.is_required() or not indent
            yield f"{start}{name}:{'' if given else ' null'}"
            yield from _lines(group, indent + 2, mark if given else "# ", explained)


if __name__ == "__main__":
    sys.stdout.buffer.write(defaults().encode())
