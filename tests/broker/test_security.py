"""Over TLS, with a password or a certificate, and with the rights that docs/security.md names and no others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AclOperation, ResourceType

from tests.broker.harness import (
    RunningDaemon,
    check_lines,
    committed_offsets,
    create_topics,
    produce,
    read_all,
    write_config,
)
from tests.broker.secured import COMMON_NAME, USER, Right, SecuredBroker, secured_broker
from tests.models import random_model

EVENTS = 40


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredBroker]:
    with secured_broker(tmp_path_factory.mktemp("secured")) as broker:
        yield broker


def rights(name: str) -> dict[str, Right]:
    """Those of docs/security.md."""
    topic, group, author = ResourceType.TOPIC, ResourceType.GROUP, ResourceType.TRANSACTIONAL_ID
    return {
        "read the input": Right(topic, f"{name}.in", AclOperation.READ),
        "write predictions": Right(topic, f"{name}.out", AclOperation.WRITE),
        "write dead letters": Right(topic, f"{name}.dead-letter", AclOperation.WRITE),
        "read states": Right(topic, f"{name}.state", AclOperation.READ),
        "write states": Right(topic, f"{name}.state", AclOperation.WRITE),
        "be a member": Right(group, name, AclOperation.READ),
        "write transactions": Right(author, name, AclOperation.WRITE, prefixed=True),
    }


RIGHTS = tuple(rights("t"))


def prepared(secured: SecuredBroker, folder: Path, name: str, kafka: Mapping[str, Any]) -> Path:
    """A configuration, and its topics with some events, of which one is bad."""
    create_topics(secured.plain, [f"{name}.{end}" for end in ("in", "out", "dead-letter", "state")], partitions=1)
    events = [(b"k", b'{"amount": 1}', None, 0)] * EVENTS
    produce(secured.plain, f"{name}.in", [*events, (b"k", b"bad", None, 0)])
    model = random_model(folder, hidden=4)
    return write_config(folder / "c.yaml", name=name, model=model, servers=secured.sasl, kafka=kafka)


@pytest.mark.parametrize("way", ["scram", "mutual_tls"])
def test_these_rights_are_enough(secured: SecuredBroker, topic_prefix: str, tmp_path: Path, way: str) -> None:
    kafka, principal = (secured.scram(), USER) if way == "scram" else (secured.mutual_tls(), COMMON_NAME)
    config = prepared(secured, tmp_path, topic_prefix, kafka)
    with (
        secured.allowing(rights(topic_prefix).values(), principal),
        RunningDaemon(config, tmp_path / "log") as daemon,
    ):
        daemon.wait_ready()
        daemon.wait(lambda: committed_offsets(secured.plain, topic_prefix).get(0) == EVENTS + 1, "past all events")
        assert daemon.sigterm() == 0, daemon.last_words()
    assert len(list(read_all(secured.plain, f"{topic_prefix}.out", partitions=1))) == EVENTS


@pytest.mark.parametrize("missing", RIGHTS)
def test_a_right_that_is_missing_is_named(
    secured: SecuredBroker, topic_prefix: str, tmp_path: Path, missing: str
) -> None:
    given = rights(topic_prefix)
    right = given.pop(missing)
    with (
        secured.allowing(given.values(), USER),
        RunningDaemon(prepared(secured, tmp_path, topic_prefix, secured.scram()), tmp_path / "log") as daemon,
    ):
        assert daemon.wait_end() == 2, daemon.last_words()
    said = daemon.log_lines[-1]["message"]
    assert right.name in said
    assert right.operation.name in said


def test_check_says_that_it_may_not_read_the_brokers_settings(
    secured: SecuredBroker, topic_prefix: str, tmp_path: Path
) -> None:
    with secured.allowing(rights(topic_prefix).values(), USER):
        code, lines = check_lines(prepared(secured, tmp_path, topic_prefix, secured.scram()), "timeouts")
    assert (code, [status for status, _ in lines]) == (0, ["warning"])
    assert "allow DESCRIBE_CONFIGS on the cluster" in lines[0][1]
