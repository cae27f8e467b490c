"""What the page and a chart of the report show, read from their HTML and SVG."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser


class Elements(HTMLParser):
    """All start tags with their attributes, and the text outside of styles and scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open.pop() != tag:  # elements such as <img> have no end tag
            pass

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open[-1:]):
            self.text.append(data)

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.text))


def in_section(page: str, anchor: str) -> Elements:
    return Elements(page.split(f'id="{anchor}"')[1].split("</section>")[0].partition(">")[2])


def texts(svg: str) -> list[str]:
    return [unescape(text) for text in re.findall(r"<text[^>]*>(.*?)</text>", svg)]


def points_of(svg: str) -> dict[str, tuple[float, float, str]]:
    """What a point says: where it lies, from the left and from the top, and its colour."""
    pattern = r'<use [^>]*?x="([\d.]+)" y="([\d.]+)" style="fill: var\(--(\w+)\)[^>]*>\s*<title>(.*?)</title>'
    return {unescape(text): (float(x), float(y), colour) for x, y, colour, text in re.findall(pattern, svg)}
