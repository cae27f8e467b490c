"""Code in running text that names something of the reference becomes a link to it."""

from __future__ import annotations

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


def setup(app: Any) -> dict[str, bool]:
    app.add_post_transform(LinkedNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
