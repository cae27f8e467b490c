"""The look of all pictures in the gallery: large enough for a phone, sharp enough for paper."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl


def printed(_: dict[str, Any], __: str) -> None:
    """Set before each example."""
    mpl.rcParams.update(mpl.rcParamsDefault)
    mpl.rcParams.update(
        {
            "figure.dpi": 160,
            "savefig.dpi": 160,
            "font.size": 9,
            "axes.titlesize": 9.5,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "image.cmap": "viridis",
            "figure.constrained_layout.use": True,
        }
    )
