"""Refusals as OpenAI's API writes them."""

from __future__ import annotations

from typing import Any


class Gone(Exception):
    """The client has left before its answer."""


class Refusal(Exception):
    """A request that is not answered, with its HTTP status and one line that says what to do."""

    def __init__(
        self,
        message: str,
        status: int = 400,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param = " ".join(message.split()), status, param
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """Return the JSON of the answer."""
        return {
            "error": {
                "message": self.message,
                "type": TYPES.get(self.status, "invalid_request_error"),
                "param": self.param,
                "code": self.status,
            }
        }


TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "internal_error",
    503: "unavailable_error",
    504: "timeout_error",
}
"""The `type` of an error by its status."""
