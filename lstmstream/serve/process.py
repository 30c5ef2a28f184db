"""`lstmstream run`: one process around one daemon: model, clients, metrics, endpoints, signals, exit code."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lstmstream import codec
from lstmstream.config import Config
from lstmstream.errors import CannotServe, Fatal, OwnershipLost
from lstmstream.serve.clock import Clock
from lstmstream.serve.config_warnings import config_warnings
from lstmstream.serve.factory import load_step_model
from lstmstream.serve.freed_memory import keep_freed_memory
from lstmstream.serve.garbage import search_new_objects_only
from lstmstream.serve.growth import find_growth
from lstmstream.serve.health import Health
from lstmstream.serve.http import Guard, HttpServer, daemon_routes
from lstmstream.serve.live import Live
from lstmstream.serve.live_feed import Feed
from lstmstream.serve.metrics import Metrics
from lstmstream.serve.model_checks import threshold_warning
from lstmstream.serve.observers import StageTimer
from lstmstream.serve.profile import Profile, Totals
from lstmstream.serve.recent_scores import RecentScores
from lstmstream.serve.startup import make_observers, open_spans, start_daemon
from lstmstream.serve.state_lookup import StateLookup
from lstmstream.serve.worker import Worker
from lstmstream.shutdown import ShutdownSignal
from lstmstream.transport.kafka import open_kafka_transport

GROWTH_S = 1.0  # for a walk over some hundred events at load

log = logging.getLogger(__name__)


def run(config: Config, shutdown: ShutdownSignal, worker: Worker | None = None, *, profile: Path | None = None) -> int:
    """Serve until a signal asks to stop. 0 after a clean hand-over, 1 failed while running, 2 could not start.

    `worker`: where this process is one of several (`--workers`); `config` is then the worker's own.
    `profile`: the file of a profile of the whole run.
    """
    os.umask(0o077)  # what is written here is for this user alone
    keep_freed_memory()
    if worker is None:  # else the process that started it says them once
        for text in config_warnings(config):
            log.warning("%s", text)
    try:
        taken = None if profile is None else Profile(profile, f"lstmstream run {config.name}")
        return _serve(config, shutdown, worker, taken)
    except CannotServe as error:
        for problem in error.problems:
            log.error("%s", problem)  # noqa: TRY400 - for a person, not for a debugger
        return 2
    except (Fatal, OwnershipLost) as error:
        log.error("%s", error)  # noqa: TRY400 - as above
        return 1
    except Exception:
        log.exception("the daemon failed with an unexpected error")
        return 1
    finally:
        shutdown.ignore()


def _serve(config: Config, shutdown: ShutdownSignal, worker: Worker | None, profile: Profile | None) -> int:
    def stopping() -> bool:
        return shutdown.requested

    clock = Clock()
    metrics = Metrics()
    health = Health(stall_after=config.http.stall_after)
    metrics.ready.set_function(lambda: float(health.readyz()[0]))
    token = config.secret("http.token")
    # A worker listens on the loopback address: whether others may see keys, its parent decides.
    live = Live(config.name, metrics, health, show_keys=token is not None or config.http.loopback)
    feed = Feed(live.take)
    guard = Guard(token, local_only=config.http.loopback)
    routes = daemon_routes(health, metrics.registry, feed)
    lookup = StateLookup(None if token is None else RecentScores())
    spans = None
    http = HttpServer(config.http.host, config.http.port, routes, feed=feed, guard=guard, state=lookup.respond)
    try:
        if worker is not None:
            worker.report_port(http.port)
        model, step = load_step_model(config)
        card = model.card
        metrics.model(name=card.name, version=card.version, fingerprint=card.fingerprint, device=step.device)
        threshold = card.threshold if config.output.threshold is None else config.output.threshold
        watching = live.start(card, step.device, threshold)
        health.unblock("model")
        log.info(
            "model loaded",
            extra={
                "model": card.name,
                "version": card.version,
                "fingerprint": card.fingerprint,
                "device": step.device,
                "codec": codec.describe(),
                "threshold": threshold,
            },
        )
        if doubt := threshold_warning(config, card):
            log.warning("%s", doubt)
        if growth := find_growth(step, seconds=GROWTH_S):
            log.warning(
                "model %s: %s. Its keys start with a fresh state each time (state.reset_after_failures); import it with"
                " --mode window, or train with cells that saturate",
                card.name,
                growth,
            )
        log.info("listening", extra={"host": config.http.host, "port": http.port})
        if profile is not None:
            profile.start()
        timer = StageTimer(clock.monotonic_s)
        spans = open_spans(config, timer, clock)
        observer = make_observers(config, card, metrics, health, timer, clock, watching, lookup, spans=spans)
        transport = open_kafka_transport(config)
        shutdown.on_request(lambda: transport.bound_calls(config.shutdown_timeout / 2))
        workers = worker.count if worker is not None and worker.number == 0 else 1  # one of them warns for all
        daemon = start_daemon(
            config,
            step,
            transport,
            observer,
            timer,
            clock=clock,
            stopping=stopping,
            background=ThreadPoolExecutor(1, thread_name_prefix="lstmstream-commit"),
            # One writes a snapshot, the other reads for a restore: neither waits for the other.
            files=ThreadPoolExecutor(2, thread_name_prefix="lstmstream-files"),
            workers=workers,
        )
        if daemon is None:
            transport.close(timeout_s=1.0)
            return 0
        search_new_objects_only()
        lookup.start(card, daemon.states)
        shutdown.on_request(daemon.stop)
        return daemon.run()
    finally:
        http.close()
        if spans is not None:
            spans.close()
        if profile is not None:
            profile.finish(Totals(*metrics.batch_totals()), log.info)
