"""Conflicts between options of the daemon, each of them valid by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from lstmstream.config.certificates import ca_fault, client_certificate_faults
from lstmstream.config.document import Conflict
from lstmstream.config.files import UnreadableFile, read_small_file
from lstmstream.config.options import options_of
from lstmstream.config.properties import Properties
from lstmstream.config.types import Mechanism

if TYPE_CHECKING:
    from lstmstream.config.schema import Config, SchemaRegistry, Security, SilentEvents

REGISTRY_TRIES = 4  # a question is asked three times, with pauses
OAUTHBEARER = "OAUTHBEARER"
WITH_REGISTRY = ("avro", "protobuf")  # formats whose schemas are in a registry


def daemon_conflicts(config: Config) -> Iterator[Conflict]:
    """Find every conflict of the daemon's configuration. Reads the certificate files."""
    yield from _topic_conflicts(config)
    yield from _alert_conflicts(config)
    yield from silent_conflicts(config.input.silent, "input.silent")
    events = config.output.events
    if events.topic is None and (events.key is not None or events.add):
        paths = ("output.events.topic", "output.events.key" if events.key is not None else "output.events.add")
        yield Conflict(paths, "is missing, and the other options of output.events have no effect without it; set it")
    yield from security_conflicts(config.kafka.security, config.folder)
    yield from _registry_conflicts(config)
    yield from _timing_conflicts(config)


def security_conflicts(security: Security, folder: Path) -> Iterator[Conflict]:
    """Find every conflict of `kafka.security`. Relative paths of its files start from `folder`; the files are read."""
    yield from _login_conflicts(security)
    yield from _oauth_conflicts(security, folder)
    unreadable = list(_certificate_conflicts(security, folder))
    yield from unreadable or _content_conflicts(security, folder)


def silent_conflicts(silent: SilentEvents, path: str) -> Iterator[Conflict]:
    """Find a field without a value, or a value without a field, in the options at `path`."""
    for name, other in (("field", "equals"), ("equals", "field")):
        if getattr(silent, name) is None and getattr(silent, other) is not None:
            text = f"is missing, and {other} has no effect without it; set it"
            yield Conflict((f"{path}.{name}", f"{path}.{other}"), text)


def _registry_conflicts(config: Config) -> Iterator[Conflict]:
    if config.input.format in WITH_REGISTRY:
        yield from needs_registry(config.kafka.schema_registry, "input.format", config.input.format)
    if config.output.format == "avro":
        yield from needs_registry(config.kafka.schema_registry, "output.format", config.output.format)
        if config.output.cloudevents == "structured":
            text = "structured is JSON, and cannot be used with output.format: avro; use binary"
            yield Conflict(("output.cloudevents", "output.format"), text)
    yield from registry_conflicts(config.kafka.schema_registry, config.folder)
    registry = config.kafka.schema_registry
    if registry.url is not None and registry.timeout * REGISTRY_TRIES >= config.http.stall_after:
        text = f"must be less than http.stall_after / {REGISTRY_TRIES}, or /livez fails while it is asked; shorten it"
        yield Conflict(("kafka.schema_registry.timeout", "http.stall_after"), text)


def needs_registry(registry: SchemaRegistry, path: str, value: str) -> Iterator[Conflict]:
    """Find that the option at `path` has a value that needs a registry, and there is none."""
    if registry.url is None:
        text = f"is missing, and {path}: {value} needs it; set it to the address of the schema registry"
        yield Conflict(("kafka.schema_registry.url", path), text)


def registry_conflicts(registry: SchemaRegistry, folder: Path) -> Iterator[Conflict]:
    """Find every conflict of `kafka.schema_registry`. The file `ca` is read."""
    above = "kafka.schema_registry"
    for name, other in (("username", "password"), ("password", "username")):
        if getattr(registry, name) is None and getattr(registry, other) is not None:
            yield Conflict((f"{above}.{name}", f"{above}.{other}"), f"is missing, and {other} needs it; set it")
    plain = registry.url is not None and registry.url.lower().startswith("http:")
    if plain and registry.password is not None and not registry.insecure:
        text = "sends the password unencrypted; use https, or set insecure: true"
        yield Conflict((f"{above}.url", f"{above}.insecure"), text)
    if registry.ca is not None:
        if plain:
            yield Conflict((f"{above}.ca", f"{above}.url"), "needs TLS; use an https address, or remove it")
        yield from _ca_conflicts(folder / registry.ca, f"{above}.ca")


def _topic_conflicts(config: Config) -> Iterator[Conflict]:
    """All topics must differ. Kafka treats `.` and `_` as equal, because the names of its metrics do."""
    seen: dict[str, str] = {}
    for path, topic in (
        ("input.topic", config.input.topic),
        ("output.topic", config.output.topic),
        ("output.alerts_topic", config.output.alerts_topic),
        ("output.events.topic", config.output.events.topic),
        ("dead_letter.topic", config.dead_letter.topic),
        ("state.topic", config.state.topic),
    ):
        if topic is None:
            continue
        first = seen.setdefault(topic.replace(".", "_"), path)
        if first != path:
            text = f"is the same topic as {first} (Kafka treats . and _ as equal); use different topics"
            yield Conflict((path, first), text)


def _alert_conflicts(config: Config) -> Iterator[Conflict]:
    alerts, topic = config.alerts, config.output.alerts_topic
    if alerts.hold and alerts.cooldown is None:
        text = "is missing, and hold needs it: it says when an incident is over; set it, for example to 10m"
        yield Conflict(("alerts.cooldown", "alerts.hold"), text)
    if alerts.end_record and not alerts.hold:
        text = "has no effect without hold, by which an alert begins an incident; set alerts.hold: true"
        yield Conflict(("alerts.end_record", "alerts.hold"), text)
    if alerts.end_record and topic is None:
        text = "is missing, and alerts.end_record needs it; set it"
        yield Conflict(("output.alerts_topic", "alerts.end_record"), text)


def _login_conflicts(security: Security) -> Iterator[Conflict]:
    sasl = security.protocol.startswith("SASL_")
    mechanism = security.mechanism is not None
    if security.protocol == "SASL_PLAINTEXT" and not security.insecure:
        text = "SASL_PLAINTEXT sends the password unencrypted; use SASL_SSL, or set insecure: true"
        yield _conflict("protocol", "insecure", text)
    if sasl and not mechanism:
        text = f"is missing, and the protocol needs it; use one of {', '.join(get_args(Mechanism))}"
        yield _conflict("mechanism", "protocol", text)
    if mechanism and not sasl:
        yield _conflict("mechanism", "protocol", "needs SASL; set kafka.security.protocol to SASL_SSL")
    oauth = security.mechanism == OAUTHBEARER
    for name, value in (("username", security.username), ("password", security.password)):
        if oauth:
            if value is not None:
                yield _conflict(name, "mechanism", "has no effect with OAUTHBEARER; remove it")
        elif mechanism and value is None:
            yield _conflict(name, "mechanism", "is missing, and the mechanism needs it; set it")
        if not mechanism and not sasl and value is not None:
            yield _conflict(name, "mechanism", "has no effect without kafka.security.mechanism; set that too")


def _oauth_conflicts(security: Security, folder: Path) -> Iterator[Conflict]:
    """Of `kafka.security.oauth`. The file `ca` is read."""
    oauth, used = security.oauth, security.mechanism == OAUTHBEARER
    for_url = {"client_id": oauth.client_id, "client_secret": oauth.client_secret}
    for_url_too = {**for_url, "scope": oauth.scope, "ca": oauth.ca}
    given = [
        name for name, value in ({"token": oauth.token, "token_url": oauth.token_url} | for_url_too).items() if value
    ]
    if given and not used:
        yield _conflict(f"oauth.{given[0]}", "mechanism", "has no effect without mechanism: OAUTHBEARER; set that too")
        return
    if used and oauth.token is None and oauth.token_url is None:
        paths = tuple(f"kafka.security.{path}" for path in ("oauth.token", "oauth.token_url", "mechanism"))
        yield Conflict(paths, "is missing, and OAUTHBEARER needs it; set it, or oauth.token_url")
    if oauth.token is not None and oauth.token_url is not None:
        yield _conflict("oauth.token", "oauth.token_url", "is given, and token_url too; remove one of them")
    for name, value in for_url_too.items():
        if oauth.token_url is None and value is not None:
            yield _conflict(f"oauth.{name}", "oauth.token_url", "has no effect without token_url; set that too")
        if oauth.token_url is not None and value is None and name in for_url:
            yield _conflict(f"oauth.{name}", "oauth.token_url", "is missing, and token_url needs it; set it")
    if oauth.token_url is not None and oauth.token_url.lower().startswith("http:") and not security.insecure:
        text = "sends the client's secret unencrypted; use https, or set kafka.security.insecure: true"
        yield _conflict("oauth.token_url", "insecure", text)
    if oauth.ca is not None:
        yield from _ca_conflicts(folder / oauth.ca, "kafka.security.oauth.ca")


def _ca_conflicts(ca: Path, path: str) -> Iterator[Conflict]:
    """Find that the file of the option at `path` holds no authorities."""
    try:
        read_small_file(ca)
    except UnreadableFile as error:
        yield Conflict((path,), f"the file it names {error}; give the path of a PEM file")
    else:
        if (fault := ca_fault(ca)) is not None:
            yield Conflict((path,), fault)


def _certificate_conflicts(security: Security, folder: Path) -> Iterator[Conflict]:
    if security.cert and not security.key:
        yield _conflict("key", "cert", "is missing, and cert needs it; set it")
    if security.key and not security.cert:
        yield _conflict("cert", "key", "is missing, and key needs it; set it")
    if security.key_password and not security.key:
        yield _conflict("key_password", "key", "has no effect without key; set key too")
    for name, file in (("ca", security.ca), ("cert", security.cert), ("key", security.key)):
        if file is None:
            continue
        if not security.protocol.endswith("SSL"):
            yield _conflict(name, "protocol", "needs TLS; set kafka.security.protocol to SSL or SASL_SSL")
        try:
            content = read_small_file(folder / file)
        except UnreadableFile as error:
            yield _conflict(name, name, f"the file it names {error}; give the path of a PEM file")
        else:
            if name == "key" and security.key_password is None and b"ENCRYPTED" in content:
                yield _conflict("key_password", "key", "is missing, and key is encrypted; set it")


def _content_conflicts(security: Security, folder: Path) -> Iterator[Conflict]:
    """Of files that can be read."""
    if security.ca is not None and (fault := ca_fault(folder / security.ca)) is not None:
        yield _conflict("ca", "ca", fault)
    if security.cert is not None and security.key is not None:
        password = None if security.key_password is None else security.key_password.get_secret_value()
        for name, fault in client_certificate_faults(folder / security.cert, folder / security.key, password):
            yield _conflict(name, "cert", fault)


def _conflict(key: str, other: str, text: str) -> Conflict:
    return Conflict((f"kafka.security.{key}", f"kafka.security.{other}"), text)


def _timing_conflicts(config: Config) -> Iterator[Conflict]:
    given = config.kafka.properties

    def ms(name: str) -> int:
        value = given.get(name, options_of(Properties)[name].default)
        assert isinstance(value, int)
        return value

    for less, more in (
        ("heartbeat.interval.ms", "session.timeout.ms"),
        ("fetch.max.wait.ms", "request.timeout.ms"),
        ("request.timeout.ms", "connections.max.idle.ms"),
        ("retry.backoff.ms", "request.timeout.ms"),
    ):
        if {less, more} & given.keys() and ms(less) >= ms(more):
            first, second = (less, more) if less in given else (more, less)
            yield Conflict(
                (f"kafka.properties.{first}", f"kafka.properties.{second}"),
                f"{less} ({ms(less)}) must be less than {more} ({ms(more)}); change one of them",
            )
    wait = config.batch.max_wait
    if wait * 1000 >= ms("max.poll.interval.ms"):
        yield Conflict(
            ("batch.max_wait", "kafka.properties.max.poll.interval.ms"),
            "must be less than max.poll.interval.ms, or the group drops this member; shorten it",
        )
    if wait >= config.http.stall_after:
        yield Conflict(("batch.max_wait", "http.stall_after"), "must be less than http.stall_after; shorten it")
