"""The templates of texts and tables, files next to the modules that fill them."""

import re
from typing import Any

from markupsafe import Markup, escape

from vaebm.records.metrics import with_direction


def _code(text: str) -> Markup:
    """Convert backticks to <code>."""
    return Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def render(template: str, **values: Any) -> str:
    """Fill the template of this path in the package; values are escaped in HTML only."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # stages import this module, and fill no template

    environment = Environment(
        loader=PackageLoader("vaebm", ""),
        autoescape=".html." in template,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"arrowed": with_direction, "code": _code, "minus": lambda text: text.replace("-", "−")}
    return environment.get_template(template).render(values)
