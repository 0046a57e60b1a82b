"""Equations as MathML when the site is built: browsers draw it themselves, so that no script or font is fetched."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

__all__ = ["draw_equations"]

_MARKED = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def draw_equations(page: str) -> str:
    """The HTML of a page with what ``pymdownx.arithmatex`` marked in it (LaTeX) as MathML."""

    def draw(found: re.Match[str]) -> str:
        shape, latex = "block" if found[2] == "[" else "inline", html.unescape(found[3]).strip()
        drawn = convert(latex, display=shape)
        return f'<div class="equation">{drawn}</div>' if shape == "block" else drawn

    return _MARKED.sub(draw, page)
