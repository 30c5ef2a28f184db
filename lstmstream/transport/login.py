"""The configuration's security settings in kafka-python's words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lstmstream.config import Security


def security_settings(security: Security, folder: Path) -> Mapping[str, Any]:
    """kafka-python's names for the same things; what is not set is left to its defaults. Paths are from `folder`."""
    settings = {
        "security_protocol": security.protocol,
        "sasl_mechanism": security.mechanism,
        "sasl_plain_username": security.username,
        "sasl_plain_password": security.password and security.password.get_secret_value(),
        "ssl_cafile": security.ca and str(folder / security.ca),
        "ssl_certfile": security.cert and str(folder / security.cert),
        "ssl_keyfile": security.key and str(folder / security.key),
        "ssl_password": security.key_password and security.key_password.get_secret_value(),
    }
    return {name: value for name, value in settings.items() if value is not None}
