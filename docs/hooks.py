"""Hooks of the site: links that leave docs/ lead to the repository, and defaults of settings are values."""

import logging
import re
from pathlib import Path
from typing import Any

log = logging.getLogger("mkdocs.hooks")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Replace relative links to files outside docs/ by addresses of the repository; a missing file is a warning."""
    docs = Path(config["docs_dir"])
    here = (docs / page.file.src_uri).parent

    def address(link: re.Match[str]) -> str:
        target = (here / link[1]).resolve()
        if target.is_relative_to(docs):
            return link[0]
        if not target.exists():
            log.warning("%s: expected a file of the repository, found the link %s", page.file.src_uri, link[1])
        place = f"{'tree' if target.is_dir() else 'blob'}/main/{target.relative_to(docs.parent).as_posix()}"
        return f"]({config['extra']['repository']}/{place}{link[2]})"

    return re.sub(r"\]\((\.\.?/[^)#\s]*)((?:#[^)\s]*)?)\)", address, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Replace `later(value)`, how `vaebm.config` writes some defaults, by the value."""
    name = r'<span class="n">(?:<[^>]+>)*later(?:</[^>]+>)+'
    return re.sub(name + r'<span class="p">\(</span>(.*?)<span class="p">\)</span>', r"\1", html)
