"""The site: it builds strictly and without a network, and the reference is in step with the code."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_generated_pages_are_in_step_with_the_code() -> None:
    pages = runpy.run_path(str(ROOT / "docs" / "generate.py"))["PAGES"]
    changed = [path for path, page in pages.items() if (ROOT / path).read_text(encoding="utf-8") != page()]
    assert changed == [], "write them anew: python docs/generate.py"


def test_site_builds_strictly_and_asks_no_network(tmp_path: Path) -> None:
    nowhere = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | nowhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    asked = re.compile(r'<(?:script|img|iframe|link)\b[^>]*(?:src|href)="?(?:https?:)?//[^>]*>')
    found = {str(page.relative_to(tmp_path)): asked.findall(page.read_text()) for page in tmp_path.rglob("*.html")}
    assert len(found) > 30 and {page: tags for page, tags in found.items() if tags} == {}
    assert 'class="arithmatex"' in (tmp_path / "index.html").read_text()
