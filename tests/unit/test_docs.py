"""The documentation: links lead somewhere, and the front page stays short."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOST_LINES = 180
"""Of README.md, the front page."""

FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)


def pages() -> list[Path]:
    """All pages of the checkout, but for what was built or installed there."""
    tops = (path for path in ROOT.iterdir() if path.name != "build" and path.name[0] != ".")
    return sorted([*ROOT.glob("*.md"), *(page for top in tops for page in top.rglob("*.md"))])


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the page's headings."""
    found: set[str] = set()
    for heading in HEADING.findall(prose(page)):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        same = sum(bool(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other)) for other in found)
        found.add(f"{slug}-{same}" if same else slug)
    return found


def broken(page: Path) -> list[str]:
    """The page's relative links that lead nowhere."""
    bad = []
    for link in LINK.findall(CODE.sub("", prose(page))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            bad.append(link)
    return bad


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    assert broken(page) == []


def test_the_front_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    lines = [
        "# A page",
        "## What `it` is, and how?",
        "[a](#what-it-is-and-how) [b](#none) [c](page.md) [d](https://example.com/e.md)",
        "`[f](g.md)` ![h](i.svg)",
        "```",
        "# not a heading",
        "[j](k)",
        "```",
    ]
    page.write_text("\n".join(lines))
    assert broken(page) == ["#none", "i.svg"]
