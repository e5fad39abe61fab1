"""Links of the documentation, which GitHub resolves in the repository, as the site needs them."""

import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]

#: Files beside docs/ that are pages of the site too.
PAGES = {
    "README.md": "overview.md",
    "SECURITY.md": "security-policy.md",
    "CHANGELOG.md": "changes.md",
}

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^)\s]+)\)")


def source_of(page: str) -> str:
    """Where a page of the site lies in the repository."""
    beside = {there: here for here, there in PAGES.items()}
    return beside.get(page, f"docs/{page}")


def rewritten(markdown: str, page: str) -> str:
    """The same text with links that hold in the site; those to folders become plain words."""

    def one(found: re.Match[str]) -> str:
        picture, words, target = found.groups()
        place = _place(target, page)
        if place is None:
            return found[0]
        there = _in_site(place)
        if there is None:
            return words
        _, mark, heading = target.partition("#")
        near = posixpath.relpath(there, posixpath.dirname(page) or ".")
        return f"{picture}[{words}]({near}{mark}{heading})"

    return _LINK.sub(one, markdown)


def files_named(markdown: str, page: str) -> dict[str, Path]:
    """Files outside docs/ that a page links to or shows: their place in the site, and here."""
    found = {}
    for _, _, target in _LINK.findall(markdown):
        place = _place(target, page)
        there = _in_site(place) if place else None
        if place and there and place not in PAGES and not place.startswith("docs/"):
            found[there] = ROOT / place
    return found


def _place(target: str, page: str) -> str | None:
    """The file in the repository that a link names; None for another host or the page itself."""
    path = target.partition("#")[0]
    if not path or "://" in target or target.startswith("mailto:"):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(source_of(page)), path))


def _in_site(place: str) -> str | None:
    if place in PAGES:
        return PAGES[place]
    if place.startswith("docs/"):
        return place.removeprefix("docs/")
    return None if (ROOT / place).is_dir() else f"repository/{place}"
