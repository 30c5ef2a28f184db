"""A worker's own side of `lstmstream run --workers N`: its configuration, and its line to the parent.

The parent starts each worker with a socket as standard input. The worker writes there that it handles signals now, and
later the port of its endpoints. The parent writes nothing: the end of the stream means that the parent has ended.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import threading

from lstmstream.config import Config
from lstmstream.errors import CannotServe

INSTANCE_ID = "group.instance.id"
LOOPBACK = "127.0.0.1"
STARTED = "started"  # said once signals are handled: from then on SIGTERM is a clean shutdown
PORT = "port "  # and the number

log = logging.getLogger(__name__)


class Worker:
    """Number `number` of `count` processes, counted from 0."""

    def __init__(self, number: int, count: int, parent: socket.socket) -> None:
        self.number = number
        self.count = count
        self._parent = parent
        self._send(STARTED)
        threading.Thread(target=self._watch_parent, name="lstmstream-parent", daemon=True).start()

    def report_port(self, port: int) -> None:
        """Where this worker's endpoints are: the parent asks there."""
        self._send(f"{PORT}{port}")

    def _send(self, line: str) -> None:
        with contextlib.suppress(OSError):  # the parent is gone, which the other thread sees too
            self._parent.sendall(f"{line}\n".encode())

    def _watch_parent(self) -> None:
        """Until the parent has ended, however it did. A worker without one would serve on with nobody to stop it."""
        with contextlib.suppress(OSError):
            while self._parent.recv(1024):
                pass
        log.warning("the parent process has ended; stopping")
        os.kill(os.getpid(), signal.SIGTERM)


def open_worker(text: str) -> Worker:
    """What `--worker` says: number and count, as in 0/2. Raises CannotServe where no parent has given it."""
    match = re.fullmatch(r"(\d{1,3})/(\d{1,3})", text, re.ASCII)
    try:
        parent = socket.socket(fileno=os.dup(0))
    except OSError:
        parent = None
    if match is None or parent is None:
        raise CannotServe("--worker is how `lstmstream run --workers` starts its workers; use --workers")
    return Worker(int(match[1]), int(match[2]), parent)


def worker_config(config: Config, number: int) -> Config:
    """The configuration of one worker: its own identity in the group, its endpoints on any port of the loopback.

    The client id stays the same for all: it is no identity, and members of the group are known as ours by it.
    """
    properties = dict(config.kafka.properties)
    if INSTANCE_ID in properties:
        properties[INSTANCE_ID] = f"{properties[INSTANCE_ID]}-{number}"
    kafka = config.kafka.model_copy(update={"properties": properties})
    http = config.http.model_copy(update={"host": LOOPBACK, "port": 0})
    return config.model_copy(update={"kafka": kafka, "http": http})
