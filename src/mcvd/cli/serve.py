"""`mcvd serve`"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from mcvd.cli.options import MODEL_HELP, Device, Engine, Port, Precision
from mcvd.errors import McvdError

if TYPE_CHECKING:
    from socket import socket

    from uvicorn import Server


@dataclass(kw_only=True)
class Command:
    """Serves a web page: choose which frames of a clip are given, and have the others generated. Ctrl-C stops it.

    Example: mcvd serve --model runs/mine
    """

    model: Annotated[str, arg(metavar="MODEL", help=MODEL_HELP)] = "digits"
    host: Annotated[tuple[str, ...], arg(metavar="ADDRESS [NAME ...]")] = ("127.0.0.1",)
    """Who can reach the page: 127.0.0.1 means this machine only; 0.0.0.0 anybody on its networks; a name of this
    machine, whoever reaches that name. There is no password. NAME: more names that browsers know it by, as behind a
    reverse proxy."""
    port: Port = 8000
    """Port of the page's address; 0 picks a free one."""
    device: Device = None
    """cpu, cuda or cuda:N."""
    precision: Precision = "fp32"
    """Arithmetic of the network, as in mcvd predict."""
    engine: Engine = "torch"
    """What runs the network, as in mcvd predict."""

    def run(self) -> None:
        """Runs the command."""
        try:
            import starlette  # noqa: F401
            import uvicorn
        except ImportError as error:
            raise McvdError(f"the page needs {error.name}: pip install 'mcvd[serve]'") from None
        import asyncio
        import errno
        import socket

        from mcvd.interop.load import load
        from mcvd.networks.engine import calls_by
        from mcvd.networks.precision import autocast
        from mcvd.web.app import application

        model = load(self.model, device=self.device)
        # what this machine lacks is reported now, not on the first order
        autocast(self.precision, model.device)
        with calls_by(model.network, self.engine):
            pass
        address, *names = self.host or ("",)
        if not address:
            raise McvdError("--host is empty, which would let everybody in; if that is meant, write 0.0.0.0")
        shown = f"[{address}]" if ":" in address else address
        try:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            listening = socket.create_server((address, self.port), family=family)
        except OSError as error:
            reason = (error.strerror or str(error)).partition(" (while ")[0]
            other = "--port, or 0" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
            raise McvdError(f"cannot listen at {address}, port {self.port}: {reason}; try another {other}") from None
        port = listening.getsockname()[1]
        hosts = [address, socket.getfqdn(address), *names]
        scratch = TemporaryDirectory(ignore_cleanup_errors=True)
        options = {"precision": self.precision, "engine": self.engine}
        app = application(model, self.model, hosts, scratch.name, **options)
        print(f"{self.model} on {model.device}: http://{shown}:{port}  (Ctrl-C stops it)", flush=True)
        # answers under way have a second; what still computes then is not waited for
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, lifespan="off")
        asyncio.run(_serve(uvicorn.Server(config), listening, scratch))


async def _serve(server: Server, listening: socket, scratch: TemporaryDirectory[str]) -> None:
    """Serves until it is interrupted or terminated, then ends the process.

    Threads that read a clip or sample cannot be stopped in the middle, and Python would wait for them. What they write
    lies in `scratch`, which is removed.
    """
    # an upload that Ctrl-C cuts off is not a server error, so it needs no traceback
    logging.getLogger("uvicorn.error").addFilter(lambda record: not server.should_exit)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn raises it anew when it has stopped
    with contextlib.suppress(KeyboardInterrupt):
        await server.serve(sockets=[listening])
    scratch.cleanup()
    os._exit(0)
