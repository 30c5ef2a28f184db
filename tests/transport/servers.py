"""Small servers of 127.0.0.1 that are no Kafka broker, or hardly one; and certificates made for them."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

Serve = Callable[[socket.socket], None]


@contextlib.contextmanager
def serving(serve: Serve, *, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """HOST:PORT where each connection is handed to `serve`, after a TLS handshake if there is a context."""
    listener = socket.create_server(("127.0.0.1", 0))

    def one(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.settimeout(10)
            if tls is None:
                serve(connection)
            else:
                with tls.wrap_socket(connection, server_side=True) as encrypted:
                    serve(encrypted)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=one, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def silent(connection: socket.socket) -> None:
    """Takes the connection and says nothing."""
    while connection.recv(1000):
        pass


def closing(connection: socket.socket) -> None:
    """Ends it at the first bytes."""
    connection.recv(10)


def answering(text: bytes, *, first: bool = False) -> Serve:
    """Always the same, before or after the first bytes have come."""

    def serve(connection: socket.socket) -> None:
        if not first:
            connection.recv(1000)
        connection.sendall(text)
        silent(connection)

    return serve


def kafka(
    advertised: str,
    *,
    mechanisms: tuple[str, ...] = (),
    password: str = "secret",
    brokers: bool = True,
    complete: bool = False,
) -> Serve:
    """As much of a broker as a diagnosis asks: ApiVersions, Metadata, and SASL PLAIN.

    With `mechanisms` it demands a login. Without, it says of a handshake that there is none. `complete`: a library
    comes so far with it too.
    """
    apis = struct.pack(">i", 4) + b"".join(
        struct.pack(">hhh", *api) for api in ((3, 1, 1), (17, 0, 1), (18, 0, 0), (36, 0, 0))
    )
    host, _, port = advertised.rpartition(":")

    def answer(api: int, version: int, body: bytes) -> bytes:
        if api == 18 and version:
            return b"\0\x23" + apis  # a version that it does not know: it answers in the oldest
        if api == 18:
            return b"\0\0" + (apis if complete else b"\0\0\0\0")
        if api == 17:
            wanted = body[2:].decode()
            names = b"".join(struct.pack(">h", len(name)) + name.encode() for name in mechanisms)
            code = 34 if not mechanisms else 0 if wanted in mechanisms else 33
            return struct.pack(">hi", code, len(mechanisms)) + names
        if api == 36:
            right = body[4:] == b"\0user\0" + password.encode()
            said = b"Authentication failed: Invalid username or password"
            return (
                struct.pack(">hhi", 0, -1, 0)
                if right
                else struct.pack(">hh", 58, len(said)) + said + struct.pack(">i", 0)
            )
        if not brokers:
            return struct.pack(">i", 0)
        return struct.pack(">iih", 1, 1, len(host)) + host.encode() + struct.pack(">ihii", int(port), -1, 0, 0)

    def serve(connection: socket.socket) -> None:
        known = not mechanisms
        while size := connection.recv(4):
            request = connection.recv(int.from_bytes(size))
            api, version, correlation, length = struct.unpack_from(">hhih", request)
            known = known or api == 36
            if api == 3 and not known:
                return
            content = struct.pack(">i", correlation) + answer(api, version, request[10 + length :])
            connection.sendall(struct.pack(">i", len(content)) + content)

    return serve


class Certificates:
    """A root, an intermediate authority and what they sign, by openssl."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.root = self._sign("root", "/CN=root", None, "basicConstraints=critical,CA:TRUE")
        self.other_root = self._sign("other", "/CN=other", None, "basicConstraints=critical,CA:TRUE")
        self.intermediate = self._sign("intermediate", "/CN=intermediate", "root", "basicConstraints=critical,CA:TRUE")

    def key(self, name: str) -> Path:
        return self._folder / f"{name}.key"

    def certificate(
        self,
        name: str,
        *,
        names: str = "IP:127.0.0.1",
        by: str = "root",
        days: int = 30,
        common_name: str = "broker",
    ) -> Path:
        """Signed by an authority, for a server of these names; `days` may be negative."""
        return self._sign(name, f"/CN={common_name}", by, f"subjectAltName={names}", days=days)

    def _sign(self, name: str, subject: str, by: str | None, extension: str, *, days: int = 30) -> Path:
        key, request, certificate = (self._folder / f"{name}.{end}" for end in ("key", "csr", "pem"))
        extensions = self._folder / f"{name}.ext"
        extensions.write_text(extension + "\n")
        self._openssl(f"req -newkey rsa:2048 -nodes -keyout {key} -out {request} -subj {subject}")
        signer = (
            f"-signkey {key}" if by is None else f"-CA {self._folder / by}.pem -CAkey {self.key(by)} -CAcreateserial"
        )
        self._openssl(f"x509 -req -in {request} {signer} -out {certificate} -days {days} -extfile {extensions}")
        return certificate

    @staticmethod
    def _openssl(arguments: str) -> None:
        subprocess.run(["openssl", *arguments.split()], check=True, capture_output=True, timeout=180)

    def server(self, certificate: Path, *, demand: Path | None = None) -> ssl.SSLContext:
        """A server's context; `demand`: the authority that clients' certificates must be signed by."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, self.key(certificate.stem))
        if demand is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(demand)
        return context
