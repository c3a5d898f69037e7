"""What stands before the application: tokens, limits, and the bodies of requests, read whole."""

import asyncio
import collections
import contextlib
import hashlib
import hmac
import json
import logging
import time
import zlib
from collections.abc import Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tfopt.serve.metrics import Metrics
from tfopt.serve.settings import Limits

logger = logging.getLogger("tfopt.serve")
# They tell no more than that the server is there, to those who look after it without a token.
OPEN = ("/healthz", "/v2/health/live", "/v2/health/ready")
_MOST_CLIENTS = 10_000
_BURST_SECONDS = 10.0
# Decompressed at a time.
_PIECE = 1 << 16
# Read and forgotten of a request that is refused.
_MOST_DRAINED, _DRAIN_SECONDS = 1 << 28, 2.0


class Stop(Exception):
    """The request is answered with an error and goes no further.

    Args:
      status: of HTTP.
      message: says what was received and what was expected.
      headers: of the answer.
    """

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


class Rate:
    """A bucket of tokens for each client; the client that asked least recently is forgotten first.

    Args:
      rate: tokens a second, above 0.
    """

    def __init__(self, rate: float) -> None:
        self.rate, self.size = rate, max(1.0, rate * _BURST_SECONDS)
        self._buckets: collections.OrderedDict[str, tuple[float, float]] = collections.OrderedDict()

    def wait(self, client: str, now: float) -> float:
        """Takes a token; returns the seconds until there is one, 0 where it was taken.

        >>> rate = Rate(0.1)
        >>> rate.wait("a", 0.0), rate.wait("a", 0.0), rate.wait("b", 0.0), rate.wait("a", 10.0)
        (0.0, 10.0, 0.0, 0.0)
        """
        tokens, then = self._buckets.pop(client, (self.size, now))
        tokens = min(self.size, tokens + (now - then) * self.rate)
        missing = max(0.0, 1.0 - tokens)
        self._buckets[client] = (tokens if missing else tokens - 1.0, now)
        if len(self._buckets) > _MOST_CLIENTS:
            self._buckets.popitem(last=False)
        return missing / self.rate


class Guard:
    """An ASGI application before another one, which gets only requests that are allowed, with their bodies whole.

    Args:
      app: what answers.
      limits: what clients may ask for.
      tokens: one of which each request must bear; none: all are let in.
      metrics: counts what happens.
    """

    def __init__(self, app: ASGIApp, limits: Limits, tokens: Sequence[str], metrics: Metrics) -> None:
        self.app, self.limits, self.metrics = app, limits, metrics
        self._digests = [_digest(token.encode()) for token in tokens]
        self._rate = Rate(limits.rate) if limits.rate else None
        self._running = self._buffered = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            # There is nothing here to talk to by WebSocket.
            await send({"type": "websocket.close", "code": 1000})
            return
        started, status = time.perf_counter(), 0

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._running += 1
        self.metrics.inflight.inc()
        held = _Held(self)
        try:
            try:
                self._admit(scope)
                body = await self._read(scope, receive, held)
            except Stop as stop:
                if not held.is_whole:
                    await _drain(scope, receive, stop)
                await _refuse(stop, note)
                return
            await self.app(scope, _Body(body, receive), note)
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"])
            if status:
                raise
            await _refuse(Stop(500, "the server failed; its log says how"), note)
        finally:
            held.release()
            self._running -= 1
            self.metrics.inflight.dec()
            # Not the path: whoever asks for many that do not exist would fill the memory.
            route = getattr(scope.get("endpoint"), "__name__", "other")
            method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD") else "other"
            self.metrics.requests.labels(route, method, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - started)

    def _admit(self, scope: Scope) -> None:
        headers = scope["headers"]
        if scope["path"] in OPEN:
            return
        if self._digests:
            given = [value for name, value in headers if name == b"authorization"]
            if not (len(given) == 1 and self._is_token(given[0])):
                what = "has no token" if not given else "has no valid token"
                raise Stop(
                    401,
                    f"the request {what}: expected the header Authorization: Bearer TOKEN",
                    **{"www-authenticate": "Bearer"},
                )
        if self._rate is not None:
            client = scope["client"][0] if scope.get("client") else ""
            wait = self._rate.wait(client, time.monotonic())
            if wait > 0:
                raise Stop(
                    429, f"more than {self.limits.rate:g} requests a second", **{"retry-after": str(int(wait) + 1)}
                )
        if self._running > self.limits.concurrency:
            raise Stop(429, f"{self.limits.concurrency} requests are being answered", **{"retry-after": "1"})

    def _is_token(self, header: bytes) -> bool:
        scheme, _, token = header.partition(b" ")
        digest = _digest(token.strip())
        # All are compared, each in constant time, so that the time tells nothing.
        equal = [hmac.compare_digest(digest, each) for each in self._digests]
        return any(equal) and scheme.lower() == b"bearer"

    async def _read(self, scope: Scope, receive: Receive, held: "_Held") -> bytes:
        headers = dict(scope["headers"])
        limit = self.limits.body_bytes
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:19]) > limit:
            raise _too_large(limit)
        encoding = headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding not in (b"identity", b"gzip", b""):
            raise Stop(415, "Content-Encoding must be gzip or left out")
        body = Inflated(limit) if encoding == b"gzip" else Plain(limit)
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Stop(400, "the client went away")
                    piece, more = message.get("body", b""), message.get("more_body", False)
                    held.is_whole = not more
                    held.add(len(piece) + body.add(piece))
        except TimeoutError:
            raise Stop(408, f"the body did not arrive within {self.limits.body_seconds:g} s") from None
        return body.end()

    def hold(self, size: int) -> None:
        """Counts bytes of bodies, of all requests together."""
        self._buffered += size
        if self._buffered > self.limits.buffered_bytes:
            raise Stop(429, "the server holds as many bytes of requests as it may", **{"retry-after": "1"})

    def free(self, size: int) -> None:
        """Gives them back."""
        self._buffered -= size


class _Held:
    """The bytes that one request holds, and whether they are all that it has."""

    def __init__(self, guard: Guard) -> None:
        self._guard, self._size, self.is_whole = guard, 0, False

    def add(self, size: int) -> None:
        self._size += size
        self._guard.hold(size)

    def release(self) -> None:
        self._guard.free(self._size)


class Plain:
    """A body as it comes.

    Args:
      limit: its most bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._pieces, self._size = limit, list[bytes](), 0

    def add(self, piece: bytes) -> int:
        """Takes a piece; returns how many bytes there are more than in the piece.

        Raises:
          Stop: there are more than the limit.
        """
        self._size += len(piece)
        if self._size > self._limit:
            raise _too_large(self._limit)
        self._pieces.append(piece)
        return 0

    def end(self) -> bytes:
        """The whole body."""
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)


class Inflated(Plain):
    """A body that is decompressed as it comes, so that a small one cannot become a large one."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._stream = zlib.decompressobj(wbits=31)

    def add(self, piece: bytes) -> int:
        """As of `Plain`; raises Stop also for what is no gzip."""
        before, rest = self._size, piece
        try:
            while rest:
                if self._stream.eof:
                    # Files of several parts are gzip too.
                    self._stream = zlib.decompressobj(wbits=31)
                super().add(self._stream.decompress(rest, _PIECE))
                rest = self._stream.unconsumed_tail or self._stream.unused_data
        except zlib.error as error:
            raise Stop(400, f"the body is said to be gzip, and is none: {error}") from None
        return self._size - before

    def end(self) -> bytes:
        """The whole body; raises Stop where it is cut short."""
        if not self._stream.eof and self._size + len(self._pieces):
            raise Stop(400, "the body is gzip, and is cut short")
        return super().end()


class _Body:
    """Hands a body over that was read before, and then what comes from the client: that it goes away."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


def _too_large(limit: int) -> Stop:
    return Stop(413, f"the body has more than {limit:,} bytes")


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


async def _drain(scope: Scope, receive: Receive, stop: Stop) -> None:
    """Reads on for a while: who is cut off while he still sends does not see the answer."""
    if stop.status == 408 or any(name == b"expect" for name, _ in scope["headers"]):
        return
    rest = _MOST_DRAINED
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            while rest > 0:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
                rest -= len(message.get("body", b""))


async def _refuse(stop: Stop, send: Send) -> None:
    content = json.dumps({"error": str(stop)}).encode()
    headers: dict[str, Any] = {
        "content-type": "application/json",
        "content-length": str(len(content)),
        # The rest of a body that was not read would be taken for the next request.
        "connection": "close",
        **stop.headers,
    }
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": stop.status, "headers": encoded})
    await send({"type": "http.response.body", "body": content})
