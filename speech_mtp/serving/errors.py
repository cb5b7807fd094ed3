"""Errors in the shape that OpenAI's clients read: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

log = logging.getLogger("speech_mtp.serving")

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="-")
"""Of the request that is being answered."""
KINDS = {
    400: ("invalid_request_error", None),
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("permission_error", "forbidden"),
    404: ("invalid_request_error", "not_found"),
    405: ("invalid_request_error", "method_not_allowed"),
    408: ("invalid_request_error", "timeout"),
    413: ("invalid_request_error", "request_too_large"),
    415: ("invalid_request_error", "unsupported_media_type"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    500: ("server_error", "internal_error"),
    501: ("server_error", "not_implemented"),
    502: ("server_error", "language_model_failed"),
    503: ("server_error", "unavailable"),
}
SENTENCES = {
    404: "There is nothing at this path; see docs/serving.md for the paths that exist.",
    405: "This path does not take this method.",
    413: "The request is too large; send less at a time.",
}


class ErrorBody(BaseModel):
    """What stands under ``error``."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Every refusal, as the schema tells it."""

    error: ErrorBody


RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "What the client should do otherwise."},
    "5XX": {"model": ErrorAnswer, "description": "What the server cannot do, or not now."},
}


class EngineFailedError(Exception):
    """The engine had to start again, or ended; the client may ask once more."""


class ApiError(HTTPException):
    """A refusal that the client is told: one sentence, the field that it is about, a code to act on."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.message, self.param = message, param
        self.type, usual = KINDS.get(status, ("invalid_request_error", None))
        self.code = code or usual

    def body(self) -> dict[str, Any]:
        """What stands under ``error``."""
        return {"message": self.message, "type": self.type, "param": self.param, "code": self.code}

    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse({"error": self.body()}, self.status_code, self.headers)


def internal() -> ApiError:
    """What a client is told of a fault of ours: nothing."""
    return ApiError(500, "The server failed at this request; the log tells more under its x-request-id.")


def told(error: Exception) -> ApiError:
    """What a client is told of an error in the middle of its work. A fault of ours goes to the log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValueError):
        return ApiError(400, str(error), "input")
    if isinstance(error, EngineFailedError):
        return ApiError(503, "The engine had to start again; ask once more.", headers={"Retry-After": "1"})
    log.error("id=%s failed: %s", REQUEST_ID.get(), where(error))
    return internal()


def where(error: BaseException) -> str:
    """The kind of an error and where it was raised, for the log: its message may hold what a client wrote."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    places = [f"{frame.name} ({frame.filename}:{frame.lineno})" for frame in traceback.extract_tb(error.__traceback__)]
    return f"{type(error).__name__} in {' < '.join(reversed(places[-4:]))}"


def from_validation(errors: list[Any]) -> ApiError:
    """The first of pydantic's complaints, without the value that was sent."""
    first = errors[0]
    place = [str(part) for part in first.get("loc", ()) if part not in ("body", "query", "path")]
    if first.get("type") == "json_invalid":
        return ApiError(400, "The body is not JSON.", code="invalid_json")
    param = ".".join(place) or None
    about = f"The field {param!r}" if param else "The body"
    return ApiError(400, f"{about} is not as it should be: {_sentence(str(first.get('msg', 'invalid')))}.", param)


def _sentence(message: str) -> str:
    message = message.removeprefix("Value error, ").rstrip(".")
    return message[:1].lower() + message[1:]


def install(app: FastAPI) -> None:
    """Let every refusal of ``app``, the framework's own included, have this shape."""

    async def api_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return error.response()

    async def validation(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return from_validation(list(error.errors())).response()

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = SENTENCES.get(error.status_code, str(error.detail))
        return ApiError(error.status_code, message, headers=error.headers).response()

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(HTTPException, http)
