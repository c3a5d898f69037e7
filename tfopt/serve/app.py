"""The application: TensorFlow Serving's REST API and KServe's V2 protocol, over the models of a repository."""

import asyncio
import contextlib
import functools
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tfopt.config import require
from tfopt.serve import rest_v1, rest_v2
from tfopt.serve.description import STRING, TensorInfo
from tfopt.serve.guard import Guard
from tfopt.serve.metrics import CONTENT_TYPE, Metrics
from tfopt.serve.openapi import document
from tfopt.serve.pool import Pool, Refused
from tfopt.serve.replica import ReplicaLost
from tfopt.serve.repository import Key, Repository, UnknownModel, Version
from tfopt.serve.settings import Settings
from tfopt.serve.tensors import dump, parse

Endpoint = Callable[[Request], Awaitable[Response]]


class _ModelName(StringConvertor):
    """A name in a path; behind a colon comes what to do."""

    regex = "[^/:]+"


register_url_convertor("model", _ModelName())


class Application:
    """Answers requests; `asgi` is what a server runs.

    Args:
      settings: what to serve, and how.
      tokens: one of which each request must bear; none: all are let in.
      version: of tfopt, for clients that ask.
    """

    def __init__(self, settings: Settings, tokens: Sequence[str] = (), version: str = "") -> None:
        self.settings, self._version = settings, version
        self.repository = Repository(settings, self._pool)
        self.metrics = Metrics(self.repository.loaded)
        self._guarded: ASGIApp = Guard(self._routes(), settings.limits, tokens, self.metrics)

    @property
    def asgi(self) -> ASGIApp:
        """The ASGI application; servers that know no lifespan call `start` first, and `close` in the end."""
        return self._guarded

    async def start(self) -> None:
        """Loads the models; errors as of `Repository.start`."""
        await self.repository.start()

    async def close(self) -> None:
        """Lets what is being answered end, and the workers then."""
        await self.repository.close()

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """For servers that start the application themselves, as Ray does."""
        await self.start()
        yield
        await self.close()

    def _pool(self, path: str, key: Key) -> Pool:
        settings = self.settings
        return Pool(
            path,
            settings.replicas,
            settings.threads,
            settings.batching,
            settings.limits.answer_seconds,
            self.metrics.observer(key),
        )

    def _routes(self) -> Starlette:
        v1, v2 = "/v1/models/{name:model}", "/v2/models/{name:model}"
        routes = [
            _route("/healthz", self.health),
            _route("/metrics", self.prometheus),
            _route("/openapi.json", self.openapi),
            _route("/v1/models", self.models),
            _route("/v2", self.server),
            _route("/v2/health/live", self.health),
            _route("/v2/health/ready", self.ready),
        ]
        for version in ("", "/versions/{version}"):
            routes += [
                _route(v1 + version, self.status),
                _route(v1 + version + "/metadata", self.metadata),
                _route(v2 + version, self.model),
                _route(v2 + version + "/ready", self.model_ready),
                _route(v2 + version + "/infer", self.infer, "POST"),
            ]
            # What follows a colon is no part of a version.
            version = version.replace("{version}", "{version:model}")
            routes += [
                _route(v1 + version + ":predict", self.predict, "POST"),
                _route(v1 + version + ":classify", self.unsupported, "POST"),
                _route(v1 + version + ":regress", self.unsupported, "POST"),
            ]
        app = Starlette(routes=routes, exception_handlers={HTTPException: _http_error}, lifespan=self._lifespan)
        app.router.redirect_slashes = False
        return app

    # The server

    async def health(self, request: Request) -> Response:
        """The process answers."""
        return _json({"live": True})

    async def ready(self, request: Request) -> Response:
        """All models that could be loaded are."""
        is_ready = self.repository.is_started and all(
            each.pool and each.pool.alive for each in self.repository.loaded()
        )
        return _json({"ready": is_ready}, 200 if is_ready else 503)

    async def prometheus(self, request: Request) -> Response:
        """What happened so far, for Prometheus."""
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    async def openapi(self, request: Request) -> Response:
        """What this server understands."""
        return _json(document(self._version))

    async def models(self, request: Request) -> Response:
        """The models, with their versions."""
        names = self.repository.names()
        return _json({"models": [{"name": name, **rest_v1.status(self.repository.versions(name))} for name in names]})

    async def server(self, request: Request) -> Response:
        """Name and extensions, as of V2."""
        return _json({"name": "tfopt", "version": self._version, "extensions": list(rest_v2.EXTENSIONS)})

    # TensorFlow Serving's REST API

    async def status(self, request: Request) -> Response:
        """The state of the versions of a model."""
        number = _number(request)
        versions = self.repository.versions(request.path_params["name"])
        found = [each for each in versions if number in (None, each.number)]
        if not found:
            self.repository.find(versions[0].name, number)
        return _json(rest_v1.status(found))

    async def metadata(self, request: Request) -> Response:
        """What a model takes and gives."""
        return _json(rest_v1.metadata(self._find(request)))

    async def predict(self, request: Request) -> Response:
        """The outputs of a model."""
        content = await request.body()
        version = self._find(request)
        body = parse(content)
        inputs = rest_v1.read_request(body, version.description)
        outputs = await self._predict(version, inputs, raw=False)
        return _json(rest_v1.write_answer(body, outputs, version.description))

    async def unsupported(self, request: Request) -> Response:
        """Classify and regress take tf.Examples, which .tflite files do not read."""
        self._find(request)
        raise ValueError(
            "only :predict is served, since models take arrays and no tf.Example; for class names add "
            '"classification": 3 to the body of a predict request'
        )

    # KServe's V2 protocol

    async def model(self, request: Request) -> Response:
        """What a model takes and gives."""
        version = self._find(request)
        numbers = [each.number for each in self.repository.versions(version.name) if each.pool is not None]
        return _json(rest_v2.metadata(version, numbers))

    async def model_ready(self, request: Request) -> Response:
        """Whether a model answers."""
        version = self._find(request)
        is_ready = version.pool is not None and bool(version.pool.alive)
        return _json({"name": version.name, "ready": is_ready}, 200 if is_ready else 503)

    async def infer(self, request: Request) -> Response:
        """The outputs of a model."""
        content = await request.body()
        version = self._find(request)
        body, binary = rest_v2.split(content, request.headers.get(rest_v2.HEADER_LENGTH))
        inputs, stored = rest_v2.read_request(body, binary, version.description)
        chosen, is_binary, raw = rest_v2.read_outputs(body, version.description, stored)
        outputs = await self._predict(version, inputs, raw)
        answer, length = rest_v2.write_answer(body, version, outputs, chosen, is_binary)
        if length is None:
            return Response(answer, media_type="application/json")
        return Response(answer, headers={rest_v2.HEADER_LENGTH: str(length)}, media_type="application/octet-stream")

    def _find(self, request: Request) -> Version:
        return self.repository.find(request.path_params["name"], _number(request))

    async def _predict(self, version: Version, inputs: Mapping[str, np.ndarray], raw: bool) -> dict[str, np.ndarray]:
        limit = self.settings.limits.tensor_bytes
        size = sum(_bytes(each) for each in inputs.values())
        require(size <= limit, f"the inputs have {size:,} bytes, more than {limit:,}: ask for fewer examples at a time")
        rows = len(next(iter(inputs.values()))) if version.description.batch else 1
        size = rows * sum(map(_row_bytes, version.description.outputs))
        require(
            size <= limit, f"the outputs have {size:,} bytes, more than {limit:,}: ask for fewer examples at a time"
        )
        assert version.pool is not None
        async with asyncio.timeout(self.settings.limits.answer_seconds):
            return await version.pool.predict(inputs, raw)


def _bytes(values: np.ndarray) -> int:
    return sum(map(len, values.ravel())) if values.dtype.kind == "O" else values.nbytes


def _row_bytes(info: TensorInfo) -> int:
    """Of one example, as far as the model tells."""
    return 0 if info.dtype == STRING else math.prod(size for size in info.shape[1:] if size > 0) * 4


def _number(request: Request) -> int | None:
    text = request.path_params.get("version")
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise UnknownModel(f"there is no version {text[:40]!r}: versions are whole numbers")
    return int(text)


def _json(values: Any, status: int = 200) -> Response:
    return Response(dump(values), status, media_type="application/json")


def _error(message: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    return Response(dump({"error": message}), status, headers=headers, media_type="application/json")


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(f"{error.detail}: {request.method} {request.url.path[:200]}", error.status_code, error.headers)


def _route(path: str, endpoint: Endpoint, method: str = "GET") -> Route:
    @functools.wraps(endpoint)
    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except UnknownModel as error:
            return _error(str(error), 404)
        except (ValueError, Refused) as error:
            return _error(str(error), 400)
        except ReplicaLost as error:
            return _error(str(error), 503, {"retry-after": "1"})
        except TimeoutError:
            return _error("the answer took longer than the server allows", 504)

    return Route(path, answer, methods=[method])
