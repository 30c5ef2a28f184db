"""A schema registry for tests: the answers of Confluent's registry, over HTTP, from memory.

GET /schemas/ids/N, /schemas/types, /subjects/S/versions/V, and POST /subjects/S/versions. A Protobuf schema is given as
its descriptor only, and only to a client that asks for `format=serialized`.
"""

from __future__ import annotations

import json
import ssl
import threading
from base64 import b64encode
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

Reference = tuple[str, str, int]  # name, subject, version


class Registry:
    """Runs in a thread of this process. `fault`: a status that every request gets, or 0 to close the connection."""

    def __init__(
        self, *, login: str | None = None, certificate: tuple[Path, Path] | None = None, port: int = 0
    ) -> None:
        self.schemas: dict[int, dict[str, Any]] = {}
        self.subjects: dict[str, list[int]] = {}
        self.requests: list[str] = []
        self.fault: int | None = None
        self.bodies: dict[str, bytes] = {}  # path → an answer in place of the right one
        self.login = login
        self._certificate = certificate
        self._server: ThreadingHTTPServer | None = None
        self._port = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        registry = self

        class Handler(_Handler):
            owner = registry

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_address[1]
        if self._certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self._certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @property
    def url(self) -> str:
        return f"{'https' if self._certificate else 'http'}://127.0.0.1:{self._port}"

    def add(self, subject: str, schema: str | bytes, kind: str = "AVRO", references: Sequence[Reference] = ()) -> int:
        """The number of the schema, the same for the same schema."""
        text = b64encode(schema).decode() if isinstance(schema, bytes) else schema
        entry: dict[str, Any] = {"schema": text}
        if kind != "AVRO":
            entry["schemaType"] = kind
        if references:
            entry["references"] = [dict(zip(("name", "subject", "version"), one, strict=True)) for one in references]
        number = next((number for number, one in self.schemas.items() if one == entry), len(self.schemas) + 1)
        self.schemas[number] = entry
        versions = self.subjects.setdefault(subject, [])
        if number not in versions:
            versions.append(number)
        return number


class _Handler(BaseHTTPRequestHandler):
    owner: Registry

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if not self._begin():
            return
        if parts.path in self.owner.bodies:
            self._write(200, self.owner.bodies[parts.path])
            return
        match [unquote(part) for part in parts.path.split("/")[1:]]:
            case ["schemas", "types"]:
                self._answer(200, ["JSON", "PROTOBUF", "AVRO"])
            case ["schemas", "ids", number]:
                self._schema(self.owner.schemas.get(int(number)), 40403, "Schema not found")
            case ["subjects", subject, "versions", version]:
                versions = self.owner.subjects.get(subject, [])
                found = self.owner.schemas[versions[int(version) - 1]] if int(version) <= len(versions) else None
                self._schema(found, 40402, "Version not found")
            case _:
                self._answer(404, {"error_code": 404, "message": "HTTP 404 Not Found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._begin():
            return
        match [unquote(part) for part in self.path.split("/")[1:]]:
            case ["subjects", subject, "versions"]:
                self._answer(200, {"id": self.owner.add(subject, body["schema"], body.get("schemaType", "AVRO"))})
            case _:
                self._answer(404, {"error_code": 404, "message": "HTTP 404 Not Found"})

    def _begin(self) -> bool:
        self.owner.requests.append(f"{self.command} {self.path}")
        if self.owner.fault == 0:
            self.close_connection = True
            return False
        if self.owner.fault is not None:
            self._answer(self.owner.fault, {"error_code": self.owner.fault, "message": "out of order"})
            return False
        login = self.owner.login
        if login is not None and self.headers["Authorization"] != f"Basic {b64encode(login.encode()).decode()}":
            self._answer(401, {"error_code": 401, "message": "Unauthorized"})
            return False
        return True

    def _schema(self, found: dict[str, Any] | None, code: int, message: str) -> None:
        serialized = parse_qs(urlsplit(self.path).query).get("format") == ["serialized"]
        if found is None:
            self._answer(404, {"error_code": code, "message": message})
        elif found.get("schemaType") == "PROTOBUF" and not serialized:
            self._answer(200, {**found, "schema": 'syntax = "proto3"; // as text'})
        else:
            self._answer(200, found)

    def _answer(self, status: int, body: Any) -> None:
        self._write(status, json.dumps(body).encode())

    def _write(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
