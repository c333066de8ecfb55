"""`mcvd COMMAND ...`: picks the command, and turns every failure into one line and an exit code.

Only the chosen command is imported, and no command imports torch before it runs, so help appears at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import difflib
import io
import os
import re
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from mcvd import __version__
from mcvd.errors import McvdError
from mcvd.text import described


class _Entry(NamedTuple):
    module: str
    summary: str
    example: str


COMMANDS = {
    "predict": _Entry("predict", "what happens next (or before)", "mcvd predict clip.mp4 --frames 20 --samples 4"),
    "interpolate": _Entry("interpolate", "what happened between two clips", "mcvd interpolate a.mp4 b.mp4 --frames 5"),
    "generate": _Entry("generate", "new videos, unconditionally", "mcvd generate --frames 30 --samples 16"),
    "fill": _Entry("fill", "any missing frames of a clip", "mcvd fill clip.mp4 --known 0-4,15-19"),
    "train": _Entry("train", "train a model from a recipe", "mcvd train my_recipe.yaml --data my_videos"),
    "evaluate": _Entry("evaluate", "how good a model is", "mcvd evaluate MODEL --data D --protocol bair-1to15"),
    "score": _Entry("score", "generated videos against real", "mcvd score REAL FAKE --protocol bair-1to15"),
    "data": _Entry("data", "prepare videos for training", "mcvd data prepare my_videos my_data"),
    "import": _Entry("import_model", "the authors' checkpoint_N.pt", "mcvd import logs/checkpoint_700000.pt"),
    "guide": _Entry("guide", "better samples by a weaker model", "mcvd guide MODEL WEAKER --output FOLDER"),
    "fetch": _Entry("fetch", "data sets and metric weights", "mcvd fetch mnist"),
    "report": _Entry("report", "an evaluation as one page", "mcvd report results/mine"),
    "compare": _Entry("compare", "evaluations side by side", "mcvd compare results/mine results/theirs"),
    "info": _Entry("info", "describe a model or a clip", "mcvd info digits"),
    "serve": _Entry("serve", "all tasks on a web page", "mcvd serve --model runs/mine"),
    "benchmark": _Entry("benchmark", "how fast all this runs here", "mcvd benchmark --batch 1 8 --json"),
}


def _share_processors() -> None:
    """On a busy machine, lets idle threads sleep instead of spin; OpenMP reads this when torch is imported.

    Two processes that both spin slow each other down several times more than sharing the cores explains; one that
    sleeps beside one that spins does no harm. Alone, sleeping costs a fifth of a network's speed (docs/performance.md).
    """
    if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        return
    busy = sorted(_running() for _ in range(5))[2]  # the median: a passing process does not count
    if busy >= (os.cpu_count() or 1) / 2:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def _running() -> int:
    """Other threads that are running, sampled after a few milliseconds; 0 if the system does not tell."""
    time.sleep(0.004)
    try:
        return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0]) - 1
    except (OSError, ValueError, IndexError):
        return 0


KEEP_MEMORY = {-3: 2**30, -1: 2**31 - 1}
"""mallopt's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD, in bytes: buffers come from a heap that never shrinks."""


def _keep_memory() -> None:
    """Lets glibc keep freed buffers; otherwise the system clears their pages again for every operation."""
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        for option, value in KEEP_MEMORY.items():
            ctypes.CDLL(None).mallopt(option, value)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (None: of this process) -> exit code.

    0: done; 1: something in the input, the files or the options cannot work; 2: the options cannot be read;
    130: interrupted. `--debug`, anywhere, shows where an error came from.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller: `>&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        stream = getattr(sys, name)
        # file names may hold characters that the terminal, or UTF-8, cannot encode
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    _share_processors()
    if words[:1] != ["benchmark"]:  # whose peers would gain most: everything there runs with Python's defaults
        _keep_memory()
    try:
        os.getcwd()
    except FileNotFoundError:  # torch would end the process, and blame one of its own files
        return _fail("the current folder no longer exists; change to another one", 1)
    code = _run(words, debug)
    try:
        sys.stdout.flush()  # else Python does, at exit, and reports what fails with words and a code of its own
    except OSError as error:
        drop_output()
        if not (code or isinstance(error, BrokenPipeError)):
            return _fail(f"what is printed cannot be written: {error.strerror or error}", 1)
        return code or 1
    return code


def _run(words: list[str], debug: bool) -> int:
    """The command, with each way to fail as one line and an exit code."""
    try:
        with _notes(debug):
            return _dispatch(words)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of our output is gone (`mcvd ... | head`)
        drop_output()
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, McvdError):
            return _fail(str(error), 1)
        reason = described(error)
        full = isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "allocate memory" in reason
        hint = "a smaller --batch-size, or --batch, needs less memory; " if full else ""
        return _fail(f"{reason} ({hint}--debug shows where)", 1)


def drop_output(stream: TextIO | None = None) -> None:
    """Discards what is printed from now on, because its reader is gone. stream: stdout, unless another is given."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), (stream or sys.stdout).fileno())


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"mcvd {__version__}")
        return 0
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"commands: {', '.join(COMMANDS)}"
        return _fail(f"no command {name}; {hint} (see mcvd --help)", 2)
    module = import_module(f"mcvd.cli.{COMMANDS[name].module}")
    try:
        command = _parse(module.Command, name, rest)
    except SystemExit as end:  # help was printed, or the options cannot be read
        return int(end.code or 0)
    command.run()
    return 0


def _parse(command: type, name: str, words: list[str]) -> Any:
    """The command with its options. tyro draws a box around an error; it becomes one line, like any other error."""
    import tyro

    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(command, prog=f"mcvd {name}", args=words, config=(tyro.conf.FlagCreatePairsOff,))
    except SystemExit as end:
        if end.code == 2:
            file = next((word for word in words if word.startswith("-") and os.path.exists(word)), None)
            said, hint = _unboxed(box.getvalue()), f"; write ./{file}" if file else ""
            if said.startswith("Unrecognized") and "--set" in words:
                hint += "; every value needs a --set of its own, KEY=VALUE without spaces"
            elif any(word.endswith(",") for word in words):
                hint += "; write lists without spaces"
            action = f" {words[0]}" if words and words[0] in getattr(command, "ACTIONS", ()) else ""
            _fail(f"{said}{hint} (see mcvd {name}{action} --help)", 2)
        raise


_SHORTER = (
    (r"Error parsing (\S+:)", r"\1"),
    # for an option that can be read in several ways, tyro lists how each failed, in Python's terms
    (r"(?:no type matching|Could not find valid parse).*?\[(.*?)\].*", r"cannot read \1"),
    (r"'None', |, 'None'", ""),
    (r"Missing value for argument '(.*?)'\. Expected 1 values\.", r"\1 takes a value"),
    (r"Missing value for argument '(.*?)'\. Expected (\d+) values\.", r"\1 takes \2 values"),
)


def _unboxed(box: str) -> str:
    """The text in tyro's box as one line: it keeps how the options are written, and drops their help."""
    parts: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line[2:].strip("│ ")
        if line[1:2].strip() or set(text) <= set("─-"):  # the frame (or a bare title, without Unicode), a rule, nothing
            parts.append([])
        elif not line.startswith(" " * 8, 2):  # the indentation of help texts
            parts[-1].append(text)
    usage = next((f"; write {part[1]}" for part in parts if part[:1] == ["Argument helptext:"] and part[1:]), "")
    said = [" ".join(filter(None, part)) for part in parts]
    said = [text for text in said if text and not text.startswith(("Argument helptext", "For full helptext"))]
    text = "; ".join(said)
    for long, short in _SHORTER:
        text = re.sub(long, short, text)
    return f"{text}{usage}" if text else "the options cannot be read"


def _overview() -> str:
    """What `mcvd --help` prints; written by hand, because it must not wait for any command's import."""
    width = max(map(len, COMMANDS))
    rows = [f"  {name:<{width}}  {entry.summary:<32}  {entry.example}" for name, entry in COMMANDS.items()]
    return "\n".join(
        [
            "usage: mcvd COMMAND ... [--debug]",
            "",
            "Fills in the missing frames of a video with one masked conditional diffusion model.",
            "",
            *rows,
            "",
            "mcvd COMMAND --help: all its options, with units and defaults.  mcvd --version: the version.",
            "--debug: show where an error came from.",
        ]
    )


@contextlib.contextmanager
def _notes(debug: bool) -> Iterator[None]:
    """The library's own warnings become one line each on stderr; those of other packages appear only with --debug, as
    do exceptions in threads, which the waiting thread reports."""
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

    def show(message: Warning | str, category: type[Warning], filename: str, *_: object) -> None:
        if debug or os.path.abspath(filename).startswith(home):
            print(f"mcvd: note: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = show  # type: ignore[assignment]
        hook = threading.excepthook
        try:
            if not debug:
                threading.excepthook = lambda _: None
            yield
        finally:
            threading.excepthook = hook


def _fail(message: str, code: int) -> int:
    print(f"mcvd: error: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
