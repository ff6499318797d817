"""The templates of the outputs, next to this module."""

import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from vaebm.records.metrics import with_direction


def _code(text: str) -> Markup:
    """Convert backticks to <code>."""
    return Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def render(template: str, **values: Any) -> str:
    """Fill the template of this name; values are escaped in HTML only."""
    environment = Environment(
        loader=PackageLoader("vaebm", "report"),
        autoescape=".html." in template,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"arrowed": with_direction, "code": _code, "minus": lambda text: text.replace("-", "−")}
    return environment.get_template(template).render(values)
