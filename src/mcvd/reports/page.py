"""A document of sections, tables and pictures, written as one HTML file, or as Markdown with a folder of files."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from mcvd.errors import McvdError
from mcvd.files import write_whole
from mcvd.text import plain

STYLE = """
:root{color-scheme:light dark;--ink:#222;--faint:#666;--line:#ddd;--paper:#fff;--good:#eef4fb}
@media(prefers-color-scheme:dark){:root{--ink:#ddd;--faint:#999;--line:#3a3a3a;--paper:#16181b;--good:#1f2a38}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:64rem;margin:2rem auto;
padding:0 1rem}
h1{font-size:1.6rem;margin-bottom:.2rem}h2{font-size:1.2rem;margin-top:2.2rem;border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin:1.4rem 0 .3rem}p.note,figcaption,td.note{color:var(--faint);font-size:.88rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92rem}
th,td{text-align:left;vertical-align:top;padding:.25rem .8rem .25rem 0;border-bottom:1px solid var(--line)}
tr.own td{background:var(--good);font-weight:600}
figure{margin:.6rem 0 1.2rem}figure img{max-width:100%;height:auto;background:#fff}svg{max-width:45rem;width:100%}
"""
TYPES = {".png": "image/png", ".gif": "image/gif"}


@dataclass(frozen=True)
class Text:
    """A paragraph of plain text; `note`: in small print."""

    text: str
    note: bool = False


@dataclass(frozen=True)
class Grid:
    """A table of plain text; the rows in `own` are highlighted."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    own: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Picture:
    """A picture. name: of its file beside the Markdown; the suffix gives the format (.svg, .png, .gif)."""

    name: str
    data: bytes
    alt: str
    inline: str = ""
    """For .svg: the version inside the HTML page, which needs no namespace."""


@dataclass(frozen=True)
class Section:
    """A part of a page with its own heading; level 2 or 3."""

    title: str
    parts: Sequence[Text | Grid | Picture]
    level: int = 2


@dataclass(frozen=True)
class Page:
    """A whole document."""

    title: str
    lead: str
    """What the page is, in a sentence or two."""
    sections: Sequence[Section]

    @property
    def pictures(self) -> list[Picture]:
        """All pictures, in order."""
        return [part for section in self.sections for part in section.parts if isinstance(part, Picture)]

    def html(self) -> str:
        """One self-contained file: pictures are embedded, nothing is fetched."""
        body = [f"<h1>{escape(self.title)}</h1>", f"<p>{escape(self.lead)}</p>"]
        for section in self.sections:
            body.append(f"<h{section.level}>{escape(section.title)}</h{section.level}>")
            body += [_html(part) for part in section.parts]
        head = [
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(self.title)}</title>",
            f"<style>{STYLE}</style>",
        ]
        return "\n".join(
            ["<!doctype html>", '<html lang="en"><head>', *head, "</head><body>", *body, "</body></html>\n"]
        )

    def markdown(self, files: str) -> str:
        """Markdown; its pictures are in the folder `files` beside it."""
        lines = [f"# {plain(self.title)}", "", plain(self.lead), ""]
        for section in self.sections:
            lines += [f"{'#' * section.level} {plain(section.title)}", ""]
            for part in section.parts:
                lines += [_markdown(part, files), ""]
        return "\n".join(lines)


def _html(part: Text | Grid | Picture) -> str:
    if isinstance(part, Text):
        return f"<p{' class=note' if part.note else ''}>{escape(part.text)}</p>"
    if isinstance(part, Grid):
        head = "".join(f"<th>{escape(cell)}</th>" for cell in part.header)
        rows = [
            f"<tr{' class=own' if i in part.own else ''}>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
            for i, row in enumerate(part.rows)
        ]
        return "\n".join(['<div class="wide"><table>', f"<tr>{head}</tr>", *rows, "</table></div>"])
    if part.inline:
        return f"<figure>{part.inline}</figure>"
    data = base64.b64encode(part.data).decode()
    kind = TYPES[Path(part.name).suffix]
    return f'<figure><img src="data:{kind};base64,{data}" alt="{escape(part.alt)}"></figure>'


def _markdown(part: Text | Grid | Picture, files: str) -> str:
    if isinstance(part, Text):
        return plain(part.text)
    if isinstance(part, Grid):
        rows = [
            ["**" + plain(cell) + "**" if i in part.own and cell else plain(cell) for cell in row]
            for i, row in enumerate(part.rows)
        ]
        return markdown_table([plain(cell) for cell in part.header], rows)
    return f"![{plain(part.alt)}]({files}/{part.name})"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells are already Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_page(page: Page, folder: Path, name: str) -> list[Path]:
    """Writes `NAME.html`, `NAME.md` and the pictures of the latter in `NAME_files/`; returns the two documents.

    Earlier reports are replaced. Raises McvdError if the folder cannot be written.
    """
    files = folder / f"{name}_files"
    html, markdown = folder / f"{name}.html", folder / f"{name}.md"
    try:
        files.mkdir(parents=True, exist_ok=True)
        keep = {picture.name for picture in page.pictures}
        for old in files.iterdir():
            if old.suffix in (".svg", *TYPES) and old.name not in keep:
                old.unlink()  # from an earlier report that showed other clips
        for picture in page.pictures:
            write_whole(files / picture.name, picture.data)
        write_whole(markdown, page.markdown(files.name))
        write_whole(html, page.html())
    except OSError as error:
        raise McvdError(f"cannot write the report in {folder}: {error.strerror or error}") from None
    return [html, markdown]
