"""Which client library: `kafka.client`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from lstmstream.errors import CannotServe
from lstmstream.extras import install_hint
from lstmstream.transport.clients import Client
from lstmstream.transport.security import SecuritySettings


def open_client(
    name: str,
    *,
    servers: Sequence[str],
    group: str,
    properties: Mapping[str, int | str],
    security: SecuritySettings,
) -> Client:
    """The client that `kafka.client` names; `auto`: confluent if it is installed, else kafka-python.

    `properties` are under Kafka's dotted names for either. Raises CannotServe where the client is not installed.
    """
    installed = find_spec("confluent_kafka") is not None
    if name == "confluent" and not installed:
        raise CannotServe(
            f"kafka.client: confluent-kafka is not installed; {install_hint('fast')}, or set kafka.client to auto or"
            " kafka-python"
        )
    if name == "confluent" or (name == "auto" and installed):
        from lstmstream.transport.clients.confluent import ConfluentClient  # noqa: PLC0415 - an extra

        return ConfluentClient(servers, group, properties, security)
    from lstmstream.transport.clients.kafka_python import KafkaPythonClient  # noqa: PLC0415 - only what is used

    return KafkaPythonClient(servers, group, properties, security)
