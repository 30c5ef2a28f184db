"""Whether TLS can use the files that `kafka.security` names: found out before a broker is asked."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

_PEM = "give a file in PEM form (it has a line -----BEGIN {what}-----)"


def ca_fault(ca: Path) -> str | None:
    """Why the file cannot be used as `ca`; None if it can."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=ca)
    except (OSError, ValueError):  # an SSLError is an OSError
        return f"the file it names holds no certificate that can be read; {_PEM.format(what='CERTIFICATE')}"
    return None


def client_certificate_faults(cert: Path, key: Path, password: str | None) -> Iterator[tuple[str, str]]:
    """Why they cannot be used together: the option at fault, and what is wrong with it. Both can be read."""
    try:
        # Without a password one would be asked for on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(cert, key, password=password or "")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or ""
        content = key.read_bytes()
        if reason == "KEY_VALUES_MISMATCH":
            yield "key", "is not the key of kafka.security.cert; give the key that this certificate was made with"
        elif b"-----BEGIN CERTIFICATE" not in cert.read_bytes():
            yield "cert", f"the file it names holds no certificate; {_PEM.format(what='CERTIFICATE')}"
        elif b"PRIVATE KEY-----" not in content:
            yield "key", f"the file it names holds no private key; {_PEM.format(what='PRIVATE KEY')}"
        elif b"ENCRYPTED" in content:
            yield "key_password", "does not open kafka.security.key; correct it"
        else:
            said = f" ({reason.replace('_', ' ').lower()})" if reason else ""
            yield "key", f"cannot be used with kafka.security.cert{said}; give both in PEM form"
