"""Small helpers for text."""

from __future__ import annotations

from collections.abc import Sequence

from mcvd.errors import McvdError


def counted(n: int, noun: str) -> str:
    """`1 clip`, `2 clips`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def first_line(error: Exception) -> str:
    """The first line of an error's message; the name of its class if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def described(error: BaseException) -> str:
    """An error in one line: one that is meant for users as it is, any other with its class."""
    if isinstance(error, McvdError):
        return str(error)
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no reason given')}"


def printable(text: str) -> str:
    """A name as text that can be printed and written: `?` for bytes of a file name that are not UTF-8."""
    return text.encode("utf-8", "replace").decode()


def colours(channels: int) -> str:
    """The usual name for this number of channels."""
    return "grey" if channels == 1 else "RGB" if channels == 3 else f"{channels} channels"


def plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    for sign in "\\`*_<>[]|$":  # GitHub and pandoc read mathematics between dollars
        text = text.replace(sign, "\\" + sign)
    return " ".join(text.splitlines())
