"""Puts RESULTS.md and CHANGELOG.md on the site, which stand outside docs/: a hook of mkdocs.

Links to them in a page lead to their pages on the site.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {"benchmarks/RESULTS.md": "results.md", "CHANGELOG.md": "changelog.md"}
"""{file of the repository: its page on the site}."""


def on_files(files: Any, config: Any) -> Any:
    """The site's files with those from outside docs/."""
    from mkdocs.structure.files import File

    for file, page in OUTSIDE.items():
        text = (ROOT / file).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """The page with links to those files changed to their pages."""
    for file, target in OUTSIDE.items():
        markdown = markdown.replace(f"](../{file}", f"]({target}")
    return markdown
