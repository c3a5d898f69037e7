"""Runs the application under uvicorn; workers are processes of this machine."""

import asyncio
import logging
import signal
import socket
import ssl
import sys
from types import FrameType

import uvicorn
import uvloop

from tfopt.serve.app import Application
from tfopt.serve.protocol import protocol
from tfopt.serve.settings import Access, Settings

logger = logging.getLogger("tfopt.serve")
_HEAD_SECONDS = 10.0
_SECONDS_TO_END = 30


def run(settings: Settings, access: Access, version: str = "") -> None:
    """Serves until SIGTERM or Ctrl-C; then answers what is being answered, and ends.

    Raises:
      ValueError: a single model cannot be loaded.
      OSError: the port cannot be used.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, access, version))


async def _serve(settings: Settings, access: Access, version: str) -> None:
    tokens = access.tokens()
    if not access.is_local and not tokens and not access.client_ca:
        logger.warning("anyone who reaches %s:%d may ask: give --token_file or --client_ca", access.host, access.port)
    with _listen(access) as listener:
        application = Application(settings, tokens, version)
        config = uvicorn.Config(
            application.asgi,
            http=protocol(min(_HEAD_SECONDS, settings.limits.body_seconds), settings.limits.answer_seconds),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=_SECONDS_TO_END,
            ssl_certfile=access.certificate or None,
            ssl_keyfile=access.key or None,
            ssl_ca_certs=access.client_ca or None,
            ssl_cert_reqs=ssl.CERT_REQUIRED if access.client_ca else ssl.CERT_NONE,
        )
        # Wrong certificates are to be known before models are loaded.
        config.load()
        await application.start()
        try:
            scheme = "https" if access.certificate else "http"
            await _Server(config, f"{scheme}://{_address(listener)}").serve(sockets=[listener])
        finally:
            await application.close()


class _Server(uvicorn.Server):
    """Says where it answers once it does."""

    def __init__(self, config: uvicorn.Config, url: str) -> None:
        super().__init__(config)
        self._url = url
        # uvicorn raises the signals that it got again when it has ended: workers are to be ended after that.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _ignore)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        sys.stdout.write(f"serving at {self._url}\n")
        sys.stdout.flush()


def _ignore(number: int, frame: FrameType | None) -> None:
    """The server has ended already."""


def _listen(access: Access) -> socket.socket:
    family = socket.AF_INET6 if ":" in access.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((access.host, access.port))
    except OSError as error:
        listener.close()
        raise OSError(
            error.errno,
            f"cannot listen at {access.host}:{access.port}: {error.strerror or error}. Choose another --port, or 0 for "
            "any that is free",
        ) from error
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
