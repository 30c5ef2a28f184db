"""From a loaded model to a daemon: reach the broker, ensure the topics, begin to join, for as long as it takes."""

from __future__ import annotations

import logging
from collections.abc import Callable

from lstmstream.config import Config
from lstmstream.errors import TryAgain
from lstmstream.serve.daemon import Clock, Daemon, backoffs
from lstmstream.serve.factory import make_engine
from lstmstream.serve.failure_log import FailureLog
from lstmstream.serve.observers import Observer, StageTimer
from lstmstream.serve.step_model import StepModel
from lstmstream.serve.topics import Topics, ensure_topics
from lstmstream.transport.ports import Transport

log = logging.getLogger(__name__)


def start_daemon(
    config: Config,
    step: StepModel,
    transport: Transport,
    observer: Observer,
    timer: StageTimer,
    *,
    clock: Clock,
    stopping: Callable[[], bool],
) -> Daemon | None:
    """Reach the broker, ensure the topics, begin to join; None if stopped meanwhile. Raises CannotServe."""
    topics = _connect(config, transport, observer, clock, stopping)
    if topics is None:
        return None
    engine = make_engine(config, step, key_hashed=topics.key_hashed, timer=timer)
    return Daemon(config, transport, topics, engine, observer, timer, clock)


def _connect(
    config: Config, transport: Transport, observer: Observer, clock: Clock, stopping: Callable[[], bool]
) -> Topics | None:
    observer.on_blocked("broker", "the broker has not been reached yet")
    failures = FailureLog(log, clock.monotonic_s)
    for backoff_s in backoffs():
        if stopping():
            return None
        observer.on_loop()
        try:
            transport.connect()
            observer.on_loop()
            topics = ensure_topics(config, transport)
            observer.on_loop()
            transport.join()
            break
        except TryAgain as error:
            observer.on_blocked("broker", "the broker cannot be reached; trying again")
            servers = ", ".join(config.kafka.bootstrap_servers)
            failures.note(f"the broker at {servers} cannot be used yet, trying again", error)
            clock.sleep(backoff_s)
    observer.on_unblocked("broker")
    return topics
