"""Small matters of text."""

from __future__ import annotations


def counted(n: int, noun: str) -> str:
    """`1 clip`, `2 clips`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def printable(text: str) -> str:
    """A name as text that can be printed and written: `?` for bytes of a file name that are no UTF-8."""
    return text.encode("utf-8", "replace").decode()
