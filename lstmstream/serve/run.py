"""`lstmstream run`: one process around one daemon: model, clients, metrics, endpoints, signals, exit code."""

from __future__ import annotations

import logging
from typing import Any

from prometheus_client import CollectorRegistry

from lstmstream.config import Config
from lstmstream.errors import CannotServe, Fatal, OwnershipLost
from lstmstream.serve.build import open_model
from lstmstream.serve.daemon import Daemon
from lstmstream.serve.health import Health
from lstmstream.serve.http import HttpServer
from lstmstream.serve.metrics import Metrics
from lstmstream.stop import Stop
from lstmstream.transport.login import security_settings

log = logging.getLogger(__name__)


def run(config: Config, stop: Stop) -> int:
    """Serve until `stop`. 0 after a clean hand-over, 1 failed while running, 2 could not start."""
    for setting, meaning in _idle_settings(config):
        log.warning("%s is set and changes nothing yet: %s is not built", setting, meaning)
    try:
        return _serve(config, stop)
    except CannotServe as error:
        for problem in error.problems:
            log.error("%s", problem)  # noqa: TRY400 - it is said for a person, not for a debugger
        return 2
    except (Fatal, OwnershipLost) as error:
        log.error("%s", error)  # noqa: TRY400 - as above
        return 1
    except Exception:
        log.exception("the daemon failed in a way that it does not know")
        return 1
    finally:
        stop.no_more()


def _idle_settings(config: Config) -> list[tuple[str, str]]:
    """Settings that belong to what is still to come."""
    idle = []
    if config.http.token is not None:
        idle.append(("http.token", "/state/<key>, which it guards,"))
    if "replay" in config.state.model_fields_set:
        idle.append(("state.replay", "on_model_change: replay"))
    return idle


def _serve(config: Config, stop: Stop) -> int:
    metrics = Metrics(CollectorRegistry())
    health = Health(stall_after=config.http.stall_after)
    http = HttpServer(config.http.host, config.http.port, health=health, registry=metrics.registry)
    try:
        model, step = open_model(config)
        card = model.card
        metrics.model(name=card.name, version=card.version, fingerprint=card.fingerprint, device=step.device)
        health.done("model")
        log.info(
            "model loaded",
            extra={"model": card.name, "version": card.version, "fingerprint": card.fingerprint, "device": step.device},
        )
        log.info("listening", extra={"host": config.http.host, "port": http.port})
        daemon = Daemon(config, step, _transport(config), metrics, health)
        stop.then(daemon.stop)
        return daemon.run()
    finally:
        http.close()


def _transport(config: Config) -> Any:
    from lstmstream.transport.kafka_python import KafkaPythonTransport  # noqa: PLC0415 - other clients, other imports

    return KafkaPythonTransport(
        bootstrap_servers=config.kafka.bootstrap_servers,
        group=config.name,
        input_topic=config.input.topic,
        exactly_once=config.delivery == "exactly_once",
        properties=config.kafka.properties,
        security=security_settings(config.kafka.security, config.folder),
    )
