"""From a loaded model to a daemon: its observers, then reach the broker, ensure the topics, begin to join."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TYPE_CHECKING

from lstmstream.config import Config
from lstmstream.errors import CannotServe, TryAgain
from lstmstream.extras import install_hint
from lstmstream.model import Card
from lstmstream.serve.clock import Clock
from lstmstream.serve.daemon import Daemon
from lstmstream.serve.dead_letter_log import DeadLetterLog
from lstmstream.serve.factory import make_engine, open_output_form, open_reader
from lstmstream.serve.failure_log import FailureLog
from lstmstream.serve.field_checks import FieldChecks
from lstmstream.serve.health import Health
from lstmstream.serve.heartbeat import Heartbeat
from lstmstream.serve.metrics import Metrics
from lstmstream.serve.observers import HealthObserver, MetricsObserver, Observer, Observers, StageTimer
from lstmstream.serve.step_model import StepModel
from lstmstream.serve.time_limits import backoffs
from lstmstream.serve.topics import GONE_S, MissingTopics, NotVisibleYet, Topics, ensure_topics
from lstmstream.transport.ports import Transport

if TYPE_CHECKING:
    from lstmstream.serve.spans import SpanObserver

WAIT_FOR_TOPIC_S = 0.25  # between two looks

log = logging.getLogger(__name__)


def make_observers(
    config: Config,
    card: Card,
    metrics: Metrics,
    health: Health,
    timer: StageTimer,
    clock: Clock,
    *more: Observer,
    spans: Observer | None = None,
) -> Observer:
    """Everything that is told what the daemon does: `spans`, metrics, health, the lines of the log, and `more`."""
    counted = MetricsObserver(
        metrics,
        card,
        input_topic=config.input.topic,
        late_policy=config.input.late,
        timer=timer,
        wall_s=clock.wall_s,
    )
    carried = [*config.output.include, *([] if config.output.key is None else [config.output.key])]
    return Observers(
        [
            *([] if spans is None else [spans]),  # before the metrics, which take the timer's times
            counted,
            HealthObserver(health),
            Heartbeat(clock.monotonic_s, clock.wall_s),
            DeadLetterLog(clock.monotonic_s, config.dead_letter.topic),
            FieldChecks(card, carried, clock.monotonic_s),
            *more,
        ]
    )


def open_spans(config: Config, timer: StageTimer, clock: Clock) -> SpanObserver | None:
    """What makes a span of each batch; None where `tracing.endpoint` is not set. Raises CannotServe."""
    if config.tracing.endpoint is None:
        return None
    try:
        from lstmstream.serve.spans import SpanObserver  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise CannotServe(
            "tracing.endpoint needs opentelemetry-sdk and opentelemetry-exporter-otlp-proto-http;"
            f" {install_hint('otel')}"
        ) from error
    return SpanObserver(config, timer.spent_s, clock.wall_s)


def start_daemon(
    config: Config,
    step: StepModel,
    transport: Transport,
    observer: Observer,
    timer: StageTimer,
    *,
    clock: Clock,
    stopping: Callable[[], bool],
    workers: int = 1,
    background: Executor | None = None,
    files: Executor | None = None,
) -> Daemon | None:
    """Reach the broker, ensure the topics, begin to join; None if stopped meanwhile. Raises CannotServe.

    `workers`: processes that were started together; a warning where the input has fewer partitions. `background` runs
    commits beside the loop; without one, nothing overlaps. `files` writes and reads snapshots beside it.
    """
    transport.on_wait(observer.on_loop)  # a broker that is waited for must not look like a loop that hangs
    topics = _connect(config, step.card.state.size, transport, observer, clock, stopping)
    if topics is None:
        return None
    if workers > topics.partitions:
        log.warning(
            "there are more workers (%d) than partitions of input.topic (%d): the others have nothing to do",
            workers,
            topics.partitions,
        )
    engine = make_engine(
        config,
        step,
        key_hashed=topics.key_hashed,
        timer=timer,
        reader=open_reader(config),
        form=open_output_form(config),
    )
    return Daemon(config, transport, topics, engine, observer, timer, clock, background, files)


def _connect(
    config: Config,
    state_floats: int,
    transport: Transport,
    observer: Observer,
    clock: Clock,
    stopping: Callable[[], bool],
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
            topics = _ensure_topics(config, state_floats, transport, observer, clock, stopping)
            if topics is None:
                return None
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


def _ensure_topics(
    config: Config,
    state_floats: int,
    transport: Transport,
    observer: Observer,
    clock: Clock,
    stopping: Callable[[], bool],
) -> Topics | None:
    """A topic that was just made is not known to every broker: wait a little; None if stopped meanwhile.

    Raises CannotServe, TryAgain.
    """
    deadline_s = clock.monotonic_s() + GONE_S
    said = ""
    while not stopping():
        observer.on_loop()
        try:
            return ensure_topics(config, transport, state_floats)
        except (MissingTopics, NotVisibleYet) as error:
            if clock.monotonic_s() >= deadline_s:
                raise
            if str(error) != said:
                said = str(error)
                # Brokers take a moment to know a topic that was just made: nothing to worry about.
                level = logging.INFO if isinstance(error, NotVisibleYet) else logging.WARNING
                log.log(level, "%s; waiting for up to %g s", error, GONE_S)
        clock.sleep(WAIT_FOR_TOPIC_S)
    return None
