"""`lstmstream run` with a client library that spins for ever in one call: python spinning_daemon.py CALL CONFIG."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from lstmstream.cli import main
from lstmstream.transport.clients.confluent import ConfluentAdmin, ConfluentClient
from lstmstream.transport.clients.confluent_consumer import ConfluentConsumer, ConfluentReader
from lstmstream.transport.clients.confluent_producer import ConfluentProducer
from lstmstream.transport.clients.kafka_python import KafkaPythonAdmin, KafkaPythonClient
from lstmstream.transport.clients.kafka_python_consumer import KafkaPythonConsumer, KafkaPythonReader
from lstmstream.transport.clients.kafka_python_producer import KafkaPythonProducer

CALLS: dict[str, tuple[tuple[type, type], str]] = {
    "connect": ((KafkaPythonClient, ConfluentClient), "admin"),
    "describe": ((KafkaPythonAdmin, ConfluentAdmin), "describe"),
    "poll": ((KafkaPythonConsumer, ConfluentConsumer), "poll"),
    "read": ((KafkaPythonReader, ConfluentReader), "read"),
    "commit": ((KafkaPythonProducer, ConfluentProducer), "commit"),
    "close": ((KafkaPythonConsumer, ConfluentConsumer), "close"),
}


def spin(mark: Path) -> NoReturn:
    """Burn a core, as a loop of a library does that makes no progress."""
    mark.touch()
    while True:
        time.monotonic()


if __name__ == "__main__":
    call, config = sys.argv[1:]
    owners, name = CALLS[call]
    for owner in owners:

        def spinning(*_: Any, **__: Any) -> NoReturn:
            spin(Path(config).with_suffix(".spins"))

        setattr(owner, name, spinning)
    sys.argv = ["lstmstream", "run", config]
    main()
