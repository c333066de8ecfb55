"""The page's HTTP interface: the model, clips in and out, orders and their progress."""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from ipaddress import ip_address
from pathlib import Path
from typing import cast

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mcvd.config import from_dict, to_dict
from mcvd.data.frames import Fit
from mcvd.diffusion.solvers import SOLVERS, default_steps
from mcvd.errors import McvdError
from mcvd.given import whole
from mcvd.model import VideoDiffusion
from mcvd.text import printable
from mcvd.web.clips import COLUMNS, FORMATS, MOST_FRAMES, Clip, ClipStore, file_name, received
from mcvd.web.jobs import MOST_SAMPLES, JobQueue, Order

MOST_SENT = 2**30
"""Largest upload, in bytes."""
MOST_ASKED = 2**20
"""Largest order, in bytes."""
_PAGE = {
    "": ("page.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
}
_POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'"


def application(
    model: VideoDiffusion, name: str, hosts: Sequence[str] = (), scratch: str | None = None, **options: str
) -> Starlette:
    """The page of a model, as an ASGI application.

    name: display name of the model. hosts: names of this machine, besides its addresses and those that only a local
    network has; requests for others are refused. scratch: folder for temporary files (None: the system's). options:
    `precision` and `engine` of `VideoDiffusion.fill`.
    """
    page = _Page(model, name, scratch, **options)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(page.queue.close)

    return Starlette(
        routes=[
            *[Route(f"/{path}", _static(*what)) for path, what in _PAGE.items()],
            Route("/model", page.about),
            Route("/clips", page.receive, methods=["POST"]),
            Route("/clips/{key}/grid.png", page.grid),
            Route("/clips/{key}/file.{suffix}", page.file),
            Route("/orders", page.orders),
            Route("/orders", page.order, methods=["POST"]),
            Route("/orders/{key}", page.progress),
            Route("/orders/{key}", page.cancel, methods=["DELETE"]),
            Route("/orders/{key}/sheet.png", page.sheet),
        ],
        middleware=[Middleware(_OwnPage, hosts=frozenset(map(str.lower, hosts)))],
        # whoever leaves in the middle of an upload reads no answer, but that is no failure of the server
        exception_handlers={McvdError: _said, ClientDisconnect: _said},
        lifespan=lifespan,
    )


class _Page:
    """The request handlers."""

    def __init__(self, model: VideoDiffusion, name: str, scratch: str | None, **options: str) -> None:
        self.model, self.name, self.scratch = model, name, scratch
        self.store = ClipStore()
        self.queue = JobQueue(model, self.store, **options)

    async def about(self, request: Request) -> Response:
        model = self.model
        height, width = model.size
        layout = model.layout
        return JSONResponse(
            {
                "name": self.name,
                "height": height,
                "width": width,
                "channels": model.channels,
                "stride": model.stride,
                "past": layout.past,
                "current": layout.current,
                "future": layout.future,
                "tasks": list(model.config.masking.tasks(layout)),
                "device": str(model.device),
                "solver": model.config.solver,
                "solvers": {
                    name: {"steps": default_steps(name, model.config.schedule), "summary": solver.summary}
                    for name, solver in SOLVERS.items()
                },
                "columns": COLUMNS,
                "most_frames": MOST_FRAMES,
                "most_samples": MOST_SAMPLES,
                "formats": list(FORMATS),
            }
        )

    async def receive(self, request: Request) -> Response:
        name = request.query_params.get("name", "clip")
        stride = _whole(request.query_params.get("stride", str(self.model.stride)), "every N-th frame")
        fit = cast(Fit, request.query_params.get("fit", "crop"))  # others are refused by the reader
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            path = Path(folder) / f"clip.{re.sub('[^a-z0-9]', '', Path(name).suffix.lower())[:8] or 'mp4'}"
            with path.open("wb") as file:
                async for part in _parts(request, MOST_SENT, name):
                    file.write(part)
            clip = await asyncio.to_thread(received, path, name, self.model, stride, fit)
        return JSONResponse({"id": self.store.put(clip), **_told(clip)})

    async def grid(self, request: Request) -> Response:
        clip = self.store[request.path_params["key"]]
        return _kept(await asyncio.to_thread(clip.grid), "image/png")

    async def file(self, request: Request) -> Response:
        clip, suffix = self.store[request.path_params["key"]], request.path_params["suffix"]
        if suffix not in FORMATS:
            raise McvdError(f"no format {suffix}; there are {', '.join(FORMATS)}")
        data = await asyncio.to_thread(clip.written, suffix, self.scratch)
        return _kept(data, FORMATS[suffix], file_name(clip.name, suffix))

    async def orders(self, request: Request) -> Response:
        """All orders, for a page that is reopened."""
        found = []
        for key, job in self.queue.jobs.items():
            named = {cell.clip for cell in job.order.timeline if cell is not None}
            clips = {clip["id"]: clip for clip in self._here(named)}
            found.append({"id": key, "order": to_dict(job.order), "clips": clips})
        return JSONResponse(found)

    async def order(self, request: Request) -> Response:
        text = b"".join([part async for part in _parts(request, MOST_ASKED, "the order")])
        try:
            said = json.loads(text)
        except (ValueError, RecursionError):  # no JSON, no text, a number of 5000 digits; nested too deeply
            raise McvdError("an order must be JSON") from None
        key = self.queue.submit(from_dict(Order, said, "order"))
        return JSONResponse({"id": key}, 202)

    async def progress(self, request: Request) -> Response:
        job = self.queue[request.path_params["key"]]
        return JSONResponse({**job.status(), "clips": self._here(job.clips)})

    async def cancel(self, request: Request) -> Response:
        self.queue.cancel(request.path_params["key"])
        return Response(status_code=204)

    async def sheet(self, request: Request) -> Response:
        data = await asyncio.to_thread(self.queue.sheet, request.path_params["key"])
        return _kept(data, "image/png")

    def _here(self, keys: Iterable[str]) -> list[dict[str, object]]:
        """Descriptions of those clips that are still kept."""
        return [{"id": key, **_told(clip)} for key in keys if (clip := self.store.get(key)) is not None]


def _static(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    text = files("mcvd.web").joinpath(name).read_text("utf-8")

    async def answer(request: Request) -> Response:
        return Response(
            text, media_type=kind, headers={"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
        )

    return answer


def _kept(data: bytes, kind: str, name: str | None = None) -> Response:
    """A file that never changes at its address; `name`: what to save it as."""
    headers = {"Cache-Control": "private, max-age=3600, immutable"}
    if name is not None:
        headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return Response(data, media_type=kind, headers=headers)


async def _parts(request: Request, most: int, name: str) -> AsyncIterator[bytes]:
    """The body, in parts as they arrive; McvdError if it has too many bytes."""
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise McvdError(f"{name} has more than {most >> 20} MiB; cut it first")
        yield part


def _told(clip: Clip) -> dict[str, object]:
    return {"name": clip.name, "frames": len(clip.video), "fps": clip.fps, "was": clip.was}


def _whole(text: str, what: str) -> int:
    try:
        return whole(what, int(text), 1)
    except ValueError:
        raise McvdError(f"{what}: {text!r} is not a whole number") from None


async def _said(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": printable(str(error))}, 400)


class _OwnPage:
    """Refuses what pages of other sites send here: browsers name the host that they ask, and the page's origin.

    hosts: names of this machine. Any other name in the Internet can be made to point to this machine, and a page of
    that name could then read the answers (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (wrong := self._wrong(scope["method"], Headers(scope=scope))):
            await JSONResponse({"error": wrong}, 403)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _wrong(self, method: str, headers: Headers) -> str:
        """Why a request is refused; empty if it is not."""
        host, origin = headers.get("host", "").lower(), headers.get("origin")
        name = re.sub(r":\d*$", "", host)
        if name not in self.hosts and not _nobody_elses(name):
            return f"{name} is no name of this machine; use its address, or start mcvd serve with --host ADDRESS {name}"
        if method not in ("GET", "HEAD") and origin is not None and origin.partition("//")[2] != host:
            return f"{origin} is another site"
        return ""


def _nobody_elses(name: str) -> bool:
    """Whether a name is an address, or one that no site in the Internet can have."""
    try:
        return bool(ip_address(name.strip("[]")))
    except ValueError:
        return "." not in name or name.endswith((".localhost", ".local", ".internal", ".home.arpa"))
