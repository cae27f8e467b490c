"""Check built pages: every link between them leads somewhere, and nothing is loaded from elsewhere to read them.

python docs/check.py out/docs
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src"}
LOADING_LINKS = {"stylesheet", "icon", "preload", "modulepreload", "shortcut"}


class Page(HTMLParser):
    """The anchors of a page, the places it links to, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in LOADED and LOADED[tag] in given:
            self.loaded.append(given[LOADED[tag]])
        if tag == "link" and LOADING_LINKS & set(given.get("rel", "").split()):
            self.loaded.append(given["href"])


def problems(folder: Path) -> list[str]:
    """One line for each link that leads nowhere and each thing that is loaded from elsewhere."""
    paths = [path for path in sorted(folder.rglob("*.html")) if "_static" not in path.parts]
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in paths}
    if not pages:
        return [f"{folder}: expected built pages, got none: make docs"]
    found = []
    for path, page in pages.items():
        name = path.relative_to(folder)
        found += [f"{name}: loads {place}" for place in page.loaded if urlsplit(place).netloc]
        for link in [*page.links, *page.loaded]:
            place = urlsplit(link)
            if place.scheme or place.netloc:
                continue
            target = (path.parent / unquote(place.path)).resolve() if place.path else path
            if not target.exists():
                found.append(f"{name}: {link} leads to no file")
            elif place.fragment and target in pages and unquote(place.fragment) not in pages[target].anchors:
                found.append(f"{name}: {link} leads to no anchor")
    return found


def main() -> int:
    found = problems(Path(sys.argv[1]).resolve())
    sys.stdout.writelines(f"{line}\n" for line in found)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
