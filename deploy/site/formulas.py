"""Formulas become MathML when the site is built, so that its pages need no script for them."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

_INLINE = re.compile(r'<span class="arithmatex">\\\((.+?)\\\)</span>', re.DOTALL)
_LOG = re.compile(r"\\log\s+(?=[\\A-Za-z])")


def block(source: str, *_: Any, **__: Any) -> str:
    """Render a fence of the language math; has the shape that pymdownx asks for."""
    return f'<div class="formula">{_mathml(source, display="block")}</div>'


def inline(page: str) -> str:
    """Replace what stood between dollars, which pymdownx has marked, in a page's HTML."""
    return _INLINE.sub(lambda found: _mathml(html.unescape(found[1]), display="inline"), page)


def _mathml(source: str, *, display: str) -> str:
    spaced = _LOG.sub(r"\\log\\, ", source.strip())  # which TeX does by itself
    return str(convert(spaced, display=display))
