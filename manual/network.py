"""What a built site would fetch from other hosts."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

__all__ = ["outside_requests"]

# Attributes that make a browser fetch; the href of an <a> does not, until somebody follows it.
_FETCHING = {
    "audio": {"src"},
    "embed": {"src"},
    "iframe": {"src"},
    "image": {"href", "xlink:href"},
    "img": {"src", "srcset"},
    "link": {"href"},
    "object": {"data"},
    "script": {"src"},
    "source": {"src", "srcset"},
    "use": {"href", "xlink:href"},
    "video": {"src", "poster"},
}
_NO_FETCH = {"canonical", "prev", "next", "alternate"}  # kinds of <link> that browsers do not load
_IN_STYLE = re.compile(r"""(?:url\(\s*|@import\s+)["']?((?:https?:)?//[^"')\s]+)""")


def outside_requests(site: Path) -> list[str]:
    """``page: address`` of everything that the pages and style sheets below ``site`` load from a host by themselves."""
    found = []
    for path in sorted(site.rglob("*.html")):
        found += [f"{path.relative_to(site)}: {address}" for address in _Page(path.read_text("utf-8")).addresses]
    for path in sorted(site.rglob("*.css")):
        found += [f"{path.relative_to(site)}: {address}" for address in _IN_STYLE.findall(path.read_text("utf-8"))]
    return found


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self._in_style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_style = tag == "style"
        values = {name: value or "" for name, value in attrs}
        self.addresses += _IN_STYLE.findall(values.get("style", ""))
        if tag == "link" and set(values.get("rel", "").split()) & _NO_FETCH:
            return
        for name in _FETCHING.get(tag, set()):
            self.addresses += [part for part in re.split(r"[\s,]+", values.get(name, "")) if _outside(part)]

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.addresses += _IN_STYLE.findall(data)


def _outside(address: str) -> bool:
    return address.startswith(("http://", "https://", "//"))
