"""`lstmstream run`: one process around one daemon: model, clients, metrics, endpoints, signals, exit code."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor

from lstmstream.config import Config
from lstmstream.errors import CannotServe, Fatal, OwnershipLost
from lstmstream.serve.clock import Clock
from lstmstream.serve.factory import load_step_model
from lstmstream.serve.growth import find_growth
from lstmstream.serve.health import Health
from lstmstream.serve.http import HttpServer
from lstmstream.serve.metrics import Metrics
from lstmstream.serve.observers import StageTimer
from lstmstream.serve.startup import make_observers, start_daemon
from lstmstream.shutdown import ShutdownSignal
from lstmstream.transport.kafka import open_kafka_transport

GROWTH_S = 1.0  # for a walk over some hundred events at load
_CONTAINER_MARKS = ("/.dockerenv", "/run/.containerenv")  # of Docker, of Podman

log = logging.getLogger(__name__)


def run(config: Config, shutdown: ShutdownSignal) -> int:
    """Serve until a signal asks to stop. 0 after a clean hand-over, 1 failed while running, 2 could not start."""
    for setting, meaning in _idle_settings(config):
        log.warning("%s has no effect yet: %s is not implemented", setting, meaning)
    try:
        return _serve(config, shutdown)
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


def _idle_settings(config: Config) -> list[tuple[str, str]]:
    """Settings that belong to what is still to come."""
    idle = []
    if config.http.token is not None:
        idle.append(("http.token", "/state/<key>, which it guards,"))
    if "replay" in config.state.model_fields_set:
        idle.append(("state.replay", "on_model_change: replay"))
    return idle


def _unreachable_probes(config: Config) -> str | None:
    """What is wrong where a container's probes come from outside and only its own loopback is listened to."""
    loopback = config.http.host in {"localhost", "::1"} or config.http.host.startswith("127.")
    in_container = "KUBERNETES_SERVICE_HOST" in os.environ or any(map(os.path.exists, _CONTAINER_MARKS))
    if not (loopback and in_container):
        return None
    return (
        f"http.host: {config.http.host} can be reached only from inside this container, not by probes or Prometheus;"
        " set http.host: 0.0.0.0"
    )


def _serve(config: Config, shutdown: ShutdownSignal) -> int:
    def stopping() -> bool:
        return shutdown.requested

    clock = Clock()
    metrics = Metrics()
    health = Health(stall_after=config.http.stall_after)
    http = HttpServer(config.http.host, config.http.port, health=health, registry=metrics.registry)
    try:
        model, step = load_step_model(config)
        card = model.card
        metrics.model(name=card.name, version=card.version, fingerprint=card.fingerprint, device=step.device)
        health.unblock("model")
        log.info(
            "model loaded",
            extra={
                "model": card.name,
                "version": card.version,
                "fingerprint": card.fingerprint,
                "device": step.device,
                "threshold": card.threshold if config.output.threshold is None else config.output.threshold,
            },
        )
        if growth := find_growth(step, seconds=GROWTH_S):
            log.warning(
                "model %s: %s. Its keys start with a fresh state each time (state.reset_after_failures); import it with"
                " --mode window, or train with cells that saturate",
                card.name,
                growth,
            )
        if problem := _unreachable_probes(config):
            log.warning("%s", problem)
        log.info("listening", extra={"host": config.http.host, "port": http.port})
        timer = StageTimer(clock.monotonic_s)
        observer = make_observers(config, card, metrics, health, timer, clock)
        transport = open_kafka_transport(config)
        shutdown.on_request(lambda: transport.bound_calls(config.shutdown_timeout / 2))
        daemon = start_daemon(
            config,
            step,
            transport,
            observer,
            timer,
            clock=clock,
            stopping=stopping,
            background=ThreadPoolExecutor(1, thread_name_prefix="lstmstream-commit"),
        )
        if daemon is None:
            transport.close(timeout_s=1.0)
            return 0
        shutdown.on_request(daemon.stop)
        return daemon.run()
    finally:
        http.close()
