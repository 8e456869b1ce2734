"""``gencore gallery``: train a model on real pictures for a few minutes, and write down as pictures what it learned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gencore.apps import biggan_gallery, restoration_gallery, sngan_gallery, style_gallery, vae_gallery
from gencore.optional import require

Painter = Callable[..., list[Path]]

# Each takes the folder, the seconds for training, the most steps (or None) and a console, and returns its pictures.
GALLERIES: dict[str, Painter] = {
    "progan": style_gallery.progan,
    "stylegan2": style_gallery.stylegan2,
    "sngan": sngan_gallery.sngan,
    "biggan": biggan_gallery.biggan,
    "red_net": restoration_gallery.red_net,
    "vae": vae_gallery.vae,
}


def run_gallery(
    name: str, out: str | Path = "out/gallery", *, seconds: float = 180.0, steps: int | None = None, console: Any = None
) -> list[Path]:
    """Train, draw, and return the pictures' paths.

    Args:
        name: a key of :data:`GALLERIES`.
        out: the folder for the pictures; made if need be.
        seconds: the most time for training.
        steps: the most steps.
        console: a ``rich.console.Console``; a new one if None.

    Raises:
        gencore.optional.MissingPackage: rich, matplotlib, pillow or the pictures' package is not installed.
        ValueError: there is no such gallery, or ``seconds`` or ``steps`` is not positive.
    """
    if name not in GALLERIES:
        raise ValueError(f"gallery: there is no {name!r}; there are {', '.join(GALLERIES)}")
    if seconds <= 0 or (steps is not None and steps <= 0):
        raise ValueError(f"gallery: seconds and steps must be positive, got seconds={seconds}, steps={steps}")
    for package in ("matplotlib", "PIL"):
        require(package, extra="bench", purpose="the gallery")
    console = console or require("rich.console", extra="bench", purpose="the gallery").Console()
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = GALLERIES[name](folder, seconds=seconds, steps=steps, console=console)
    for picture in pictures:
        console.print(f"wrote [bold]{picture}[/]", highlight=False)
    return pictures
