"""The look that the studies' pictures share, and how they are saved."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COLOURS = "viridis"  # perceptually uniform, and monotone in grey
_STYLE: dict[str, Any] = {
    "font.size": 8.5,
    "axes.titlesize": 9,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "pdf.fonttype": 42,
}


@contextmanager
def styled(changes: Mapping[str, Any] | None = None) -> Iterator[None]:
    """The style for what is drawn and saved inside, with `changes` to matplotlib's rcParams."""
    import matplotlib

    matplotlib.use("Agg")
    style: Any = _STYLE | dict(changes or {})
    with matplotlib.rc_context(style):
        yield


def save(figure: Any, path: Path, *, dpi: int = 200) -> None:
    """Save `figure` as a PNG and a PDF, `path` with these suffixes; equal figures leave equal files.

    The PNG has a palette of 256 colours, which to the eye is the same and takes a third of the space.
    """
    from PIL import Image

    pixels = io.BytesIO()
    figure.savefig(pixels, format="png", dpi=dpi)
    image = Image.open(pixels).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    image.save(path.with_suffix(".png"), optimize=True)
    figure.savefig(path.with_suffix(".pdf"), dpi=dpi, metadata={"CreationDate": None})


def colour(share: float, colours: str = COLOURS) -> Any:
    """A colour of the map; its palest end is left out."""
    import matplotlib

    return matplotlib.colormaps[colours](share)
