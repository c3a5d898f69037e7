"""Has Ray's proxy answer 503 where a replica ended before it answered; it gives no answer then, and uvicorn says 500.

Ray calls `middlewares` where the environment variable RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it.
"""

from typing import Any

from starlette.middleware import Middleware

_HEADERS = [(b"content-type", b"application/json"), (b"retry-after", b"1")]
_BODY = b'{"error":"the replica that computed the answer ended; ask again"}'


def middlewares() -> list[Middleware]:
    """What the proxy puts around itself."""
    return [Middleware(LostReplicas)]


class LostReplicas:
    """ASGI middleware: 503 where there is no answer.

    Args:
      app: what it is put around.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Passes a request on, and its answer back."""
        has_begun = False

        async def answer(message: Any) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        await self._app(scope, receive, answer)
        if scope["type"] == "http" and not has_begun:
            await send({"type": "http.response.start", "status": 503, "headers": _HEADERS})
            await send({"type": "http.response.body", "body": _BODY})
