"""The page of troubles: each is headed by words that a program of ours says."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from documented import ROOT, pages

SOURCES = ("common", "server", "client")
#: Messages on the page that are another library's, and whose.
OTHERS = {"CUDA out of memory": "torch"}
PAGE = pages()["docs/troubleshooting.md"]


def messages() -> set[str]:
    """Texts of all modules but docstrings; `common/x.py` with "a {b} c" gives "a … c"."""
    return {
        text for root in SOURCES for path in (ROOT / root).rglob("*.py") for text in _texts(path)
    }


def is_said(heading: str, said: set[str]) -> bool:
    """Whether the fixed words of a heading stand in one message, in that order."""
    parts = [re.escape(part.strip()) for part in heading.split("…") if part.strip(" ,;:")]
    pattern = re.compile(".*".join(parts), re.DOTALL)
    return any(pattern.search(text) for text in said)


def _texts(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documents = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values
            )
        elif isinstance(node, ast.Constant) and id(node) not in documents:
            yield str(node.value)


def test_each_trouble_is_headed_by_words_that_our_programs_say() -> None:
    headings = re.findall(r"^### `(.+)`$", PAGE, re.MULTILINE)
    assert len(headings) == PAGE.count("\n### ") >= 20
    assert len(set(headings)) == len(headings)
    said = messages()
    assert not [one for one in headings if one not in OTHERS and not is_said(one, said)]
    assert OTHERS.keys() <= set(headings)
    assert not is_said("the state directory … is in use by another client", said)


def test_each_trouble_has_a_cause_and_something_to_do() -> None:
    for trouble in PAGE.split("\n### ")[1:]:
        assert "**Cause.**" in trouble, trouble
        assert "**Do.**" in trouble, trouble
