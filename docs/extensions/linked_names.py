"""Code in running text that names something of the reference becomes a link to it; sources link back to where it is."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode

_TITLES_AND_LINKS = (nodes.reference, nodes.title, nodes.Titular)
_TOP = ("function", "class", "exception", "data", "module")


class LinkedNames(SphinxPostTransform):
    default_priority = 400

    @cached_property
    def places(self) -> dict[str, tuple[str, str]]:
        """Page and anchor of each full name, and of a last name that only one function, class or module has."""
        objects = self.env.domains["py"].data["objects"]
        places = {name: (entry.docname, entry.node_id) for name, entry in objects.items()}
        short: dict[str, set[tuple[str, str]]] = {}
        for name, entry in objects.items():
            if entry.objtype in _TOP:
                short.setdefault(name.rpartition(".")[2], set()).add(places[name])
        return {name: next(iter(found)) for name, found in short.items() if len(found) == 1} | places

    def run(self, **_: Any) -> None:
        for literal in list(self.document.findall(nodes.literal)):
            place = self.places.get(literal.astext().removesuffix("()"))
            parents = _ancestors(literal)
            if place is None or place[0] == self.env.docname or any(isinstance(p, _TITLES_AND_LINKS) for p in parents):
                continue
            docname, anchor = place
            link = make_refnode(self.app.builder, self.env.docname, docname, anchor, literal.deepcopy())
            literal.replace_self(link)


def _ancestors(node: nodes.Node) -> list[nodes.Node]:
    found = []
    while node.parent is not None:
        node = node.parent
        found.append(node)
    return found


_BACK = re.compile(r'(class="viewcode-back" href="[^"#]*?([^/"#]+)\.html)#([^"]+)"')


def correct_links_back(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Give links of source pages the anchors of names that are documented where they are exported.

    `sphinx.ext.viewcode` takes all names of a module to be documented under one package.
    """
    if not pagename.startswith("_modules/"):
        return
    objects = app.env.domains["py"].data["objects"]
    anchors = {(entry.docname.rpartition("/")[2], name): entry.node_id for name, entry in objects.items()}

    def corrected(match: re.Match[str]) -> str:
        start, page, anchor = match.groups()
        parts = anchor.split(".")
        for first in range(1, len(parts)):
            ends = "." + ".".join(parts[first:])
            found = [node for (where, name), node in anchors.items() if where == page and name.endswith(ends)]
            if found:
                return f'{start}#{min(found, key=len)}"'
        return f'{start}"'

    context["body"] = _BACK.sub(corrected, context["body"])


def setup(app: Any) -> dict[str, bool]:
    app.add_post_transform(LinkedNames)
    app.connect("html-page-context", correct_links_back)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
