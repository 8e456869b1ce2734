"""The demo's report: one HTML file that holds everything, pictures included."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path

from gencore.environment import env
from gencore.optional import require


@dataclass(frozen=True)
class Picture:
    """A PNG file with its heading and caption."""

    path: Path
    title: str
    caption: str

    @property
    def data_uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.path.read_bytes()).decode()


@dataclass(frozen=True)
class Table:
    """A heading, the columns' names, rows of text, and what is to be known about them."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    caption: str


@dataclass
class Report:
    """What the report shows, collected on the way."""

    out: Path
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def picture(self, name: str, title: str, caption: str) -> Path:
        """Announce a picture; returns the file to write it to."""
        self.pictures.append(Picture(self.out / f"{name}.png", title, caption))
        return self.pictures[-1].path

    def write(self, seconds: float) -> Path:
        """Write ``report.html`` into the folder and return its path; the pictures must be there."""
        jinja2 = require("jinja2", extra="bench", purpose="the demo's report")
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
        )
        page = environment.get_template("report.html.j2").render(report=self, facts=env().facts, seconds=seconds)
        path = self.out / "report.html"
        path.write_text(page, encoding="utf-8")
        return path
