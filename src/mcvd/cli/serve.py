"""`mcvd serve`"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from mcvd.cli.options import MODEL_HELP, Device, Engine, Port, Precision
from mcvd.errors import McvdError


@dataclass(kw_only=True)
class Command:
    """A page for a browser: choose which frames of a clip are given, and see the others made. Ctrl-C ends it.

    Example: mcvd serve --model runs/mine
    """

    model: Annotated[str, arg(metavar="MODEL", help=MODEL_HELP)] = "digits"
    host: Annotated[str, arg(metavar="ADDRESS")] = "127.0.0.1"
    """Who can reach the page: 127.0.0.1 is this machine alone; 0.0.0.0 is everybody in its networks. There is no
    password."""
    port: Port = 8000
    """Of the page's address; 0 is any that is free."""
    device: Device = None
    """cpu, cuda or cuda:N."""
    precision: Precision = "fp32"
    """What the network computes in, as in mcvd predict."""
    engine: Engine = "torch"
    """What carries out network calls, as in mcvd predict."""

    def run(self) -> None:
        """Does it."""
        try:
            import starlette
            import uvicorn
        except ImportError as error:
            raise McvdError(f"the page needs {error.name}: pip install 'mcvd[serve]'") from None
        del starlette
        import socket

        from mcvd.interop.load import load
        from mcvd.networks.precision import autocast
        from mcvd.web.app import application

        model = load(self.model, device=self.device)
        autocast(self.precision, model.device)  # raises McvdError now where the device has no units for it
        own = self.host in ("127.0.0.1", "localhost", "::1")
        hosts = ["127.0.0.1", "localhost", "[::1]"] if own else ["*"]
        app = application(model, self.model, hosts, precision=self.precision, engine=self.engine)
        try:
            listening = socket.create_server(
                (self.host, self.port), family=socket.AF_INET6 if ":" in self.host else socket.AF_INET
            )
        except OSError as error:
            raise McvdError(
                f"cannot listen at {self.host}, port {self.port}: {error.strerror or error}; try another --port, or 0"
            ) from None
        port = listening.getsockname()[1]
        shown = f"[{self.host}]" if ":" in self.host else self.host
        print(f"{self.model} on {model.device}: http://{shown}:{port}  (Ctrl-C ends it)", flush=True)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        # an upload that Ctrl-C cuts off is no error of the server's, for which it would print a traceback
        logging.getLogger("uvicorn.error").addFilter(lambda record: not server.should_exit)
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listening])
