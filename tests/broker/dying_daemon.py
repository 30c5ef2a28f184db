"""`lstmstream run` that dies by SIGKILL at a named point of a transaction: python dying_daemon.py POINT COUNT CONFIG.

The points are wrapped from outside, so that the product holds no code for its own end.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from lstmstream.cli import main
from lstmstream.records import RecordBatch
from lstmstream.serve.daemon import Daemon
from lstmstream.transport.clients.kafka_python_producer import KafkaPythonProducer
from lstmstream.transport.kafka import KafkaTransport

POINTS = ("polled", "begun", "sent", "flushed", "offsets_sent", "committing", "committed")


def die() -> None:
    """As the machine would take it."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def wrap(
    owner: type, name: str, *, before: Callable[..., None] | None = None, after: Callable[..., None] | None = None
) -> None:
    """Put code around a method."""
    inner = getattr(owner, name)

    def outer(self: Any, *args: Any, **kwargs: Any) -> Any:
        if before is not None:
            before(self, *args, **kwargs)
        result = inner(self, *args, **kwargs)
        if after is not None:
            after(self, *args, **kwargs)
        return result

    setattr(owner, name, outer)


def arrange(point: str, count: int) -> None:
    """Die at `point` of the `count`-th batch of events (the transactions that begin a partition come before)."""
    polled = committing = 0  # batches; while one is committed in the background, the next is polled

    def on_batch(*_: Any, **__: Any) -> None:
        nonlocal polled
        polled += 1
        if point == "polled" and polled == count:
            die()

    def on_commit(_: Any, outputs: Sequence[RecordBatch], *__: Any, **___: Any) -> None:
        nonlocal committing
        committing += any(len(batch) for batch in outputs)

    def at(_: Any, *__: Any, **___: Any) -> None:
        if committing == count:
            die()

    def soon(_: Any, *__: Any, **___: Any) -> None:
        if committing == count:
            threading.Timer(0.002, die).start()  # the commit is on its way then, or was answered just now

    wrap(Daemon, "_process_batch", before=on_batch)
    wrap(KafkaTransport, "commit", before=on_commit)
    for producer in producers():
        if point == "begun":
            wrap(producer, "begin", after=at)
        elif point in ("sent", "flushed"):
            wrap(producer, "flush", **{"before" if point == "sent" else "after": at})
        elif point == "offsets_sent":
            wrap(producer, "send_offsets", after=at)
        elif point == "committing":
            wrap(producer, "commit", before=soon)
        elif point == "committed":
            wrap(producer, "commit", after=at)


def producers() -> list[type]:
    """Of the clients that are installed."""
    found: list[type] = [KafkaPythonProducer]
    if importlib.util.find_spec("confluent_kafka") is not None:
        from lstmstream.transport.clients.confluent_producer import ConfluentProducer

        found.append(ConfluentProducer)
    return found


if __name__ == "__main__":
    arrange(sys.argv[1], int(sys.argv[2]))
    sys.argv = ["lstmstream", "run", sys.argv[3]]
    main()
