"""Requests over HTTP to servers beside Kafka: the schema registry, and where tokens come from."""

from __future__ import annotations

import ssl
from http.client import HTTPMessage
from typing import IO
from urllib.request import HTTPRedirectHandler, HTTPSHandler, OpenerDirector, Request, build_opener

MAX_BYTES = 10_000_000  # of one answer


class _NoRedirects(HTTPRedirectHandler):
    """Credentials go to the configured address only."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        """None: the redirect is an error."""
        del req, fp, code, msg, headers, newurl
        return None


def make_opener(ca: str | None) -> OpenerDirector:
    """Opens http and https; `ca` is a PEM file of the trusted authorities, None those of the system."""
    return build_opener(HTTPSHandler(context=ssl.create_default_context(cafile=ca)), _NoRedirects)


def read_response(opener: OpenerDirector, request: Request, timeout_s: float) -> bytes:
    """The body of the answer. Raises OSError, HTTPException, and ValueError where it is too long."""
    with opener.open(request, timeout=timeout_s) as response:
        content: bytes = response.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"its answer has more than {MAX_BYTES} bytes")
    return content
