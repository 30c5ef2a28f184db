"""What is wrong between options that are each right by themselves, and what is in the contract and not built yet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, get_args

from lstmstream.config.files import Unreadable, read
from lstmstream.config.schema import OPTIONS, Config, Security
from lstmstream.config.values import Mechanism


class Clash(NamedTuple):
    """Something wrong between keys: told at the first of `paths`, unless one of them is wrong by itself."""

    paths: tuple[str, ...]
    text: str


def find(config: Config) -> Iterator[Clash]:
    """Everything that no key by itself can be blamed for. Reads the certificate files."""
    yield from _not_built(config)
    yield from _topics(config)
    yield from _login(config.kafka.security)
    yield from _certificates(config.kafka.security, config.folder)
    yield from _timing(config)


def _not_built(config: Config) -> Iterator[Clash]:
    if config.on_model_change == "replay":
        yield Clash(("on_model_change",), "replay is not built yet; use fail or reset")
    if config.kafka.client == "confluent":
        yield Clash(("kafka.client",), "confluent is not built yet; use auto or kafka-python")
    if config.state.dir is not None:
        yield Clash(("state.dir",), "local snapshots are not built yet; take it away")
    if config.state.max_keys is not None:
        yield Clash(("state.max_keys",), "a bound on the keys is not built yet; take it away")


def _topics(config: Config) -> Iterator[Clash]:
    """All topics differ. Kafka takes `.` and `_` for the same, since its metrics cannot tell them apart."""
    seen: dict[str, str] = {}
    for path, topic in (
        ("input.topic", config.input.topic),
        ("output.topic", config.output.topic),
        ("output.alerts_topic", config.output.alerts_topic),
        ("dead_letter.topic", config.dead_letter.topic),
        ("state.topic", config.state.topic),
    ):
        if topic is None:
            continue
        first = seen.setdefault(topic.replace(".", "_"), path)
        if first != path:
            yield Clash((path, first), f"is the topic of {first} (. and _ count as one); give each its own")


def _login(security: Security) -> Iterator[Clash]:
    sasl = security.protocol.startswith("SASL_")
    mechanism = security.mechanism is not None
    if security.protocol == "SASL_PLAINTEXT" and not security.insecure:
        text = "SASL_PLAINTEXT shows the password to the network; use SASL_SSL, or set insecure: true"
        yield _at("protocol", "insecure", text)
    if sasl and not mechanism:
        yield _at("mechanism", "protocol", f"is missing, and SASL needs it; one of {', '.join(get_args(Mechanism))}")
    if mechanism and not sasl:
        yield _at("mechanism", "protocol", "needs the protocol SASL_SSL; set kafka.security.protocol")
    for name, value in (("username", security.username), ("password", security.password)):
        if mechanism and value is None:
            yield _at(name, "mechanism", "is missing, and the mechanism needs it; set it")
        if not mechanism and not sasl and value is not None:
            yield _at(name, "mechanism", "has no use without a mechanism; set that too")


def _certificates(security: Security, folder: Path) -> Iterator[Clash]:
    if security.cert and not security.key:
        yield _at("key", "cert", "is missing, and cert needs it; set it")
    if security.key and not security.cert:
        yield _at("cert", "key", "is missing, and key needs it; set it")
    if security.key_password and not security.key:
        yield _at("key_password", "key", "has no use without key; set that too")
    for name, file in (("ca", security.ca), ("cert", security.cert), ("key", security.key)):
        if file is None:
            continue
        if not security.protocol.endswith("SSL"):
            yield _at(name, "protocol", "needs the protocol SSL or SASL_SSL; set it")
        try:
            content = read(folder / file)
        except Unreadable as error:
            yield _at(name, name, f"names a file that {error}; give a PEM file")
        else:
            if name == "key" and security.key_password is None and b"ENCRYPTED" in content:
                yield _at("key_password", "key", "is missing, and key is encrypted; set it")


def _at(key: str, other: str, text: str) -> Clash:
    return Clash((f"kafka.security.{key}", f"kafka.security.{other}"), text)


def _timing(config: Config) -> Iterator[Clash]:
    given = config.kafka.properties

    def ms(name: str) -> int:
        value = given.get(name, OPTIONS[f"kafka.properties.{name}"].default)
        assert isinstance(value, int)
        return value

    for less, more in (
        ("heartbeat.interval.ms", "session.timeout.ms"),
        ("fetch.max.wait.ms", "request.timeout.ms"),
        ("request.timeout.ms", "connections.max.idle.ms"),
    ):
        if {less, more} & given.keys() and ms(less) >= ms(more):
            first, second = (less, more) if less in given else (more, less)
            yield Clash(
                (f"kafka.properties.{first}", f"kafka.properties.{second}"),
                f"{less} ({ms(less)}) must be less than {more} ({ms(more)}); change one",
            )
    wait = config.batch.max_wait
    if wait * 1000 >= ms("max.poll.interval.ms"):
        yield Clash(
            ("batch.max_wait", "kafka.properties.max.poll.interval.ms"),
            "must be less than max.poll.interval.ms, or the group drops this member; shorten it",
        )
    if wait >= config.http.stall_after:
        yield Clash(("batch.max_wait", "http.stall_after"), "must be less than http.stall_after; shorten it")
