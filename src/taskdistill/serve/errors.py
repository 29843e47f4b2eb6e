"""Errors that a client is answered with, in OpenAI's shape or in that of
text-embeddings-inference.
"""

from __future__ import annotations

from typing import Any

import orjson
from starlette.responses import Response

from taskdistill.errors import BadInput

TEI_PATH = "/embed"
"""The route whose errors have the shape of text-embeddings-inference."""

_TYPES = {
    401: "authentication_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable",
}
_CODES = {
    400: "invalid_request",
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
    415: "unsupported_media_type",
    421: "unknown_host",
    429: "overloaded",
    431: "head_too_large",
    500: "internal_error",
    503: "unavailable",
}
_TEI_TYPES = {429: "Overloaded", 500: "Backend", 503: "Unhealthy"}
_TEI_STATUS = {400: 422, 500: 424}


class ApiError(Exception):
    """A request that is answered with an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        close: bool = False,
    ) -> None:
        """Say what is wrong.

        `message`: what was given, what is needed, what to do; never the client's text. `code`:
        short name of the error; None for that of the status. `retry_after`: seconds after which to
        try again. `close`: whether the connection is closed, because the rest of the request is not
        read.
        """
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code or _CODES.get(status, "error")
        self.retry_after = retry_after
        self.close = close


def answer(error: ApiError, path: str) -> Response:
    """Make the response of an error.

    `path`: path of the request; `/embed` answers in the shape of text-embeddings-inference.
    """
    status, message = error.status, sendable(error.message)
    body: dict[str, Any]
    if path == TEI_PATH:
        kind = "Empty" if error.code == "empty_input" else _TEI_TYPES.get(status, "Validation")
        body = {"error": message, "error_type": kind}
        status = 400 if kind == "Empty" else _TEI_STATUS.get(status, status)
    else:
        kind = _TYPES.get(status, "invalid_request_error")
        body = {
            "error": {
                "message": message,
                "type": kind,
                "param": None if error.param is None else sendable(error.param),
                "code": error.code,
            }
        }
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.close:
        headers["Connection"] = "close"
    return Response(orjson.dumps(body), status, headers, "application/json")


def sendable(text: str) -> str:
    """Return a text that UTF-8 can hold: halves of surrogate pairs, which JSON can name, are
    replaced.
    """
    return text.encode("utf-8", "replace").decode()


def as_api_error(error: BaseException) -> ApiError:
    """Turn any error into one that may be shown.

    Returns the error itself, a 400 for bad input, and a 500 without details for everything else.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BadInput):
        return ApiError(400, str(error))
    return ApiError(
        500,
        "the server failed at this request; its log has the reason under the id in X-Request-Id",
    )
