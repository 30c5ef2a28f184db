"""A token endpoint for the client credentials of OAuth (RFC 6749, section 4.4)."""

from __future__ import annotations

import contextlib
import threading
from base64 import b64decode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote_plus

import orjson

from tests.broker.secured import unsigned_token


class TokenEndpoint:
    """Gives tokens of one subject to the client `daemon` that knows the secret."""

    def __init__(self, subject: str, secret: str, *, lifetime_s: float = 60) -> None:
        self.subject, self.secret, self.lifetime_s = subject, secret, lifetime_s
        self.given = 0  # tokens
        self.forms: list[dict[str, list[str]]] = []
        self.answer: tuple[int, bytes] | None = None  # in place of a token

    def respond(self, authorization: str, body: bytes) -> tuple[int, bytes]:
        """Status and body."""
        self.forms.append(parse_qs(body.decode()))
        if self.answer is not None:
            return self.answer
        user, _, secret = b64decode(authorization.removeprefix("Basic ")).decode().partition(":")
        if (unquote_plus(user), unquote_plus(secret)) != ("daemon", self.secret):
            return 401, orjson.dumps({"error": "invalid_client", "error_description": f"{secret} is wrong"})
        self.given += 1
        token = unsigned_token(self.subject, lifetime_s=self.lifetime_s)
        return 200, orjson.dumps({"access_token": token, "token_type": "bearer", "expires_in": self.lifetime_s})

    @contextlib.contextmanager
    def serving(self) -> Iterator[str]:
        """Its URL."""
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, content = endpoint.respond(self.headers["Authorization"], body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/token"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
