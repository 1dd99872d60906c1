"""Errors of the API: an HTTP status and one sentence."""

from __future__ import annotations


class ApiError(Exception):
    """An answer that is not 2xx: `status` is the HTTP code, `message` the text of the JSON body's `error` key.

    Codes follow RunPod's documentation of job operations: 400 bad request, 401 key, 404 endpoint, job or route,
    405 method, 429 rate limit.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class StartError(Exception):
    """The endpoint cannot start; the text is one line that says what to change."""
