"""The OpenAPI document of the server."""

from typing import Any

from tfopt.serve.description import DATATYPES
from tfopt.serve.rest_v2 import HEADER_LENGTH
from tfopt.serve.settings import TOKENS

Schema = dict[str, Any]

_ERROR: Schema = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
_OBJECT: Schema = {"type": "object"}
_NAME: Schema = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "pattern": "^[^/:]+$"}}
_VERSION: Schema = {
    "name": "version",
    "in": "path",
    "required": True,
    "schema": {"type": "integer", "minimum": 0, "maximum": 10**18 - 1},
}
_VALUE: Schema = {"description": 'Nested lists of numbers, or of texts and {"b64": …}; for several inputs an object.'}
_PREDICT: Schema = {
    "type": "object",
    "properties": {
        "signature_name": {"type": "string", "enum": ["", "serving_default"]},
        "instances": {"type": "array", "minItems": 1, "items": _VALUE, "description": "Examples, one after the other."},
        "inputs": _VALUE,
        "classification": {"type": "integer", "minimum": 1, "description": "So many of the likeliest classes too."},
    },
    "oneOf": [{"required": ["instances"]}, {"required": ["inputs"]}],
    "additionalProperties": False,
}
_PARAMETERS: Schema = {"type": "object"}
_TENSOR: Schema = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 32},
        "datatype": {"type": "string", "enum": list(DATATYPES)},
        "parameters": _PARAMETERS,
        "data": {"type": "array"},
    },
    "required": ["name", "shape", "datatype"],
}
_INFER: Schema = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "parameters": _PARAMETERS,
        "inputs": {"type": "array", "minItems": 1, "items": _TENSOR},
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "parameters": _PARAMETERS},
                "required": ["name"],
            },
        },
    },
    "required": ["inputs"],
}
_ERRORS = {
    "400": "the request is wrong; the error says how",
    "401": "no valid token",
    "404": "no such model, version or path",
    "405": "another method is served here",
    "408": "the body did not arrive in time",
    "413": "the body is too large",
    "415": "the body is encoded in an unknown way",
    "429": "too many requests, of this client or of all",
    "503": "not ready, or the worker was lost; ask again",
    "504": "the answer took too long",
}


def document(version: str) -> Schema:
    """What the server understands, in OpenAPI 3.1.

    >>> sorted(document("1.0")["paths"])[:3]
    ['/healthz', '/metrics', '/openapi.json']
    """
    paths: Schema = {
        "/healthz": _get("The process answers.", open_to_all=True),
        "/metrics": _get("What happened so far, for Prometheus.", {"text/plain": {"schema": {"type": "string"}}}),
        "/openapi.json": _get("This document."),
        "/v1/models": _get("The models, with the state of their versions."),
        "/v2": _get("Name, version and extensions."),
        "/v2/health/live": _get("The process answers.", open_to_all=True),
        "/v2/health/ready": _get("All models that could be loaded answer.", open_to_all=True),
    }
    for part, parameters in (("", [_NAME]), ("/versions/{version}", [_NAME, _VERSION])):
        v1, v2 = "/v1/models/{name}" + part, "/v2/models/{name}" + part
        ours: Schema = {
            v1: _get("The state of the versions."),
            v1 + "/metadata": _get("What the model takes and gives."),
            v1 + ":predict": _post("Predicts, as TensorFlow Serving does.", {"application/json": {"schema": _PREDICT}}),
            v2: _get("What the model takes and gives."),
            v2 + "/ready": _get("Whether the model answers."),
            v2 + "/infer": _infer(),
        }
        paths |= {path: {**item, "parameters": parameters} for path, item in ours.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "tfopt", "version": version or "0", "description": "Models served by tfopt."},
        "paths": paths,
        "components": {
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": f"Where the server was started with --token_file or {TOKENS}.",
                }
            }
        },
        # With a token, or without where the server asks for none.
        "security": [{"token": []}, {}],
    }


def _get(summary: str, content: Schema | None = None, open_to_all: bool = False) -> Schema:
    operation: Schema = {"summary": summary, "responses": _responses(content)}
    if open_to_all:
        operation["security"] = []
    return {"get": operation}


def _post(summary: str, content: Schema, answer: Schema | None = None) -> Schema:
    body = {"required": True, "content": content}
    return {"post": {"summary": summary, "requestBody": body, "responses": _responses(answer)}}


def _infer() -> Schema:
    binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    item = _post(
        "Predicts, as of KServe's V2 protocol.",
        {"application/json": {"schema": _INFER}},
        {"application/json": {"schema": _OBJECT}, **binary},
    )
    item["post"]["parameters"] = [
        {
            "name": HEADER_LENGTH,
            "in": "header",
            "required": False,
            "description": "Bytes of JSON in the body; binary tensors follow.",
            "schema": {"type": "integer", "minimum": 0},
        }
    ]
    return item


def _responses(content: Schema | None) -> Schema:
    good = {"description": "done", "content": content or {"application/json": {"schema": _OBJECT}}}
    # Readiness has a body that is no error.
    error = {"application/json": {"schema": {"anyOf": [_ERROR, _OBJECT]}}}
    return {"200": good, **{status: {"description": text, "content": error} for status, text in _ERRORS.items()}}
