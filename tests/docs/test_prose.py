"""Pages and docstrings as text: links lead somewhere, lines are short, words are plain."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token
from pymdownx.slugs import slugify

ROOT = Path(__file__).parents[2]
NAMES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "config/README.md", "results/README.md")
PAGES = [*filter(Path.is_file, map(ROOT.joinpath, NAMES)), *sorted((ROOT / "docs").rglob("*.md"))]

WORDS = re.compile(
    r"\b(?:beside|told|goes\s+on|stands|aim(?:s|ed)?|missed|allowed|sessions?)\b|(?:^|[.!?:]\s+)(?-i:Of)\b",
    re.IGNORECASE,
)
"""Words with a plainer one, and words about the work instead of the software."""

RIGHT: set[tuple[str, str]] = {
    ("vaebm/system/distributed.py", "session"),  # of POSIX
}
"""(file, word): where the word has its own meaning."""


def tokens(page: Path) -> list[Token]:
    """The Markdown of a page; front matter is left out, line numbers stay."""
    text = re.sub(r"\A---\n.*?\n---\n", lambda front: "\n" * front[0].count("\n"), page.read_text(), flags=re.DOTALL)
    return MarkdownIt().enable("table").parse(text)


def inlines(page: Path) -> Iterator[tuple[Token, bool]]:
    """Every paragraph, heading and cell, and whether it is in a table."""
    table = False
    for token in tokens(page):
        table = token.type == "table_open" or (table and token.type != "table_close")
        if token.type == "inline":
            yield token, table


def prose(token: Token) -> str:
    """Text without code; a line break is one."""
    parts = {"text": lambda one: one.content, "softbreak": lambda _: "\n", "image": lambda one: one.content}
    return "".join(parts.get(one.type, lambda one: "`" * bool(one.content))(one) for one in token.children or ())


def headings(page: Path) -> set[str]:
    """Anchors of a page, the same on the site and on GitHub."""
    found = tokens(page)
    titles = [after for one, after in zip(found, found[1:], strict=False) if one.type == "heading_open"]
    return {slugify(case="lower")("".join(one.content for one in title.children or ()), "-") for title in titles}


def docstrings() -> Iterator[tuple[str, int, str]]:
    """File, line and text of every docstring of the package, those of attributes included."""
    for path in sorted((ROOT / "vaebm").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    yield path.relative_to(ROOT).as_posix(), node.lineno, re.sub(r"`[^`]*`", "`", text)


def test_relative_links_lead_to_files_and_headings() -> None:
    problems, count = [], 0
    for page in PAGES:
        for token, _ in inlines(page):
            links = [str(one.attrGet("href") or one.attrGet("src") or "") for one in token.children or ()]
            for link in filter(None, links):
                if re.match(r"[a-z]+:", link):
                    continue
                path, _, anchor = link.partition("#")
                target, count = (page.parent / path).resolve() if path else page, count + 1
                known = not anchor or anchor.startswith("vaebm.") or (target.is_file() and anchor in headings(target))
                if not target.exists() or not known:
                    problems.append(f"{page.relative_to(ROOT)}:{(token.map or [0])[0] + 1}: {link}")
    assert count > 100 and not problems, "\n".join(problems)


def test_pages_that_code_and_configuration_name_are_there() -> None:
    folders = ("vaebm", "config", "workflow", "profiles", "benchmarks", "tests", "docs")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*") if file.is_file()]
    files = [file for file in files if file.suffix in {".py", ".md", ".yaml", ".smk", ".j2", ".rst"}]
    problems = []
    for file in [*files, *(ROOT / name for name in NAMES[:3] if (ROOT / name).is_file())]:
        for number, line in enumerate(file.read_text().splitlines(), 1):
            for name in re.findall(r"\bdocs/[\w/-]+\.md\b", line):
                if not (ROOT / name).is_file():
                    problems.append(f"{file.relative_to(ROOT)}:{number}: {name}")
    assert not problems, "\n".join(problems)


def test_lines_of_prose_have_at_most_100_columns() -> None:
    problems = []
    for page in PAGES:
        lines = page.read_text().splitlines()
        for token, table in inlines(page):
            first, last = token.map or (0, 0)
            for number in range(first, 0 if table else last):
                if len(lines[number]) > 100 and not re.fullmatch(r"\W*https?://\S+", lines[number]):
                    problems.append(f"{page.relative_to(ROOT)}:{number + 1}: {len(lines[number])} columns")
    assert not problems, "\n".join(problems)


def test_words_are_plain() -> None:
    texts = [
        (page.relative_to(ROOT).as_posix(), (token.map or [0])[0] + 1, prose(token))
        for page in PAGES
        for token, _ in inlines(page)
    ]
    problems, right = [], set()
    for file, line, text in [*texts, *docstrings()]:
        for found in WORDS.finditer(text):
            word = found[0].strip(" .!?:\n")
            if (file, word) in RIGHT:
                right.add((file, word))
            else:
                problems.append(f"{file}:{line + text[: found.start()].count(chr(10))}: {word}")
    assert not problems, "\n".join(problems)
    assert right == RIGHT, "an exception that nothing needs"
