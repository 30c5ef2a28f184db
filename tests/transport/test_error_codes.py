"""The table of the broker's errors: complete, and the same for both clients."""

from __future__ import annotations

import kafka.errors as kerr
import pytest
from confluent_kafka import KafkaError, KafkaException

from lstmstream.errors import CannotServe, RecordRefused, TryAgain
from lstmstream.transport.clients import Client
from lstmstream.transport.clients.choose import open_client
from lstmstream.transport.clients.kafka_python import KafkaPythonClient
from lstmstream.transport.decisions import ErrorKind, decide
from lstmstream.transport.error_codes import CODES, SETTINGS, broker_problem
from lstmstream.transport.security import SecuritySettings

OURS = {
    kind.errno: kind
    for kind in vars(kerr).values()
    if isinstance(kind, type) and issubclass(kind, kerr.BrokerResponseError) and isinstance(kind.errno, int)
}
THEIRS = {
    value
    for name, value in vars(KafkaError).items()
    if isinstance(value, int) and name.isupper() and not name.startswith("_")
}
PROPERTIES: dict[str, int | str] = {"transaction.timeout.ms": 3_600_000, "session.timeout.ms": 500}
BOUNDS = {
    50: ["transaction.timeout.ms = 3600000", "transaction.max.timeout.ms"],
    26: ["session.timeout.ms = 500", "group.min.session.timeout.ms", "group.max.session.timeout.ms"],
    76: ["compression.type = none (the default)"],
    23: ["name: ", "'g'"],
    24: ["name: ", "'g'"],
}


@pytest.fixture(params=["kafka-python", "confluent"])
def client(request: pytest.FixtureRequest) -> Client:
    name: str = request.param
    return open_client(name, servers=["127.0.0.1:9"], group="g", properties=PROPERTIES, security=SecuritySettings())


def raised(client: Client, code: int) -> Exception:
    """The broker's error as the client raises it."""
    if type(client).__name__ == "ConfluentClient":
        return KafkaException(KafkaError(code))
    return OURS[code]("because") if code in OURS else kerr.UnknownError("because")


def test_every_code_that_a_library_knows_is_in_the_table() -> None:
    assert OURS.keys() | THEIRS <= CODES.keys()
    assert CODES.keys() == set(range(-1, 134))
    assert len({name for name, _ in CODES.values()}) == len(CODES)


def test_every_refused_setting_is_named() -> None:
    assert {code for code, (_, kind) in CODES.items() if kind is ErrorKind.SETTING_REFUSED} == SETTINGS.keys()


@pytest.mark.parametrize("code", sorted(CODES.keys() - {0}))
def test_a_client_gives_the_kind_of_the_table(client: Client, code: int) -> None:
    error = raised(client, code)
    expected = CODES[code].kind if code in OURS or not isinstance(error, kerr.KafkaError) else ErrorKind.TRANSIENT
    problem = client.problem(error)
    assert problem is not None
    assert problem.kind is expected
    wrapped = kerr.KafkaError(f"Unexpected error in some response: {error}")
    if isinstance(error, kerr.KafkaError):  # some answers keep the number in the text only
        inner = client.problem(wrapped)
        assert inner is not None
        assert inner.kind is expected


@pytest.mark.parametrize("code", BOUNDS)
def test_a_refused_setting_is_named_with_its_value_and_its_bound(client: Client, code: int) -> None:
    problem = client.problem(raised(client, code))
    assert problem is not None
    error = decide(problem)
    assert type(error) is CannotServe
    assert all(words in str(error) for words in BOUNDS[code]), error


@pytest.mark.parametrize("code", [10, 18, 32, 43, 87])
def test_a_refused_record_is_no_broken_broker(client: Client, code: int) -> None:
    problem = client.problem(raised(client, code))
    assert problem is not None
    error = decide(problem)
    assert isinstance(error, RecordRefused)
    assert error.too_large == (code in (10, 18))


def test_a_code_of_a_newer_broker_is_transient_and_is_named() -> None:
    problem = broker_problem(999, "what is this", {}, "g")
    error = decide(problem)
    assert type(error) is TryAgain
    assert str(error) == "what is this (unknown error, error 999)"


def test_a_transient_error_that_lasts_is_in_plain_words(client: Client) -> None:
    for code, words in ((81, "group.max.size"), (19, "min.insync.replicas"), (15, "replication.factor")):
        problem = client.problem(raised(client, code))
        assert problem is not None
        assert words in problem.text


def test_what_librdkafka_refuses_names_the_property() -> None:
    """Its rules are not Kafka's; what it raises means a setting, not a broken broker."""
    properties: dict[str, int | str] = {"delivery.timeout.ms": 20_000, "transaction.timeout.ms": 10_000}
    client = open_client(
        "confluent", servers=["127.0.0.1:9"], group="g", properties=properties, security=SecuritySettings()
    )
    with pytest.raises(KafkaException) as raised:
        client.producer("an-id")
    problem = client.problem(raised.value)
    assert problem is not None
    assert problem.kind is ErrorKind.BAD_SETTINGS
    assert "`delivery.timeout.ms` must be set <= `transaction.timeout.ms`" in problem.text


@pytest.mark.parametrize("error", [AssertionError, ValueError, TypeError, NotImplementedError, ImportError])
def test_what_kafka_python_refuses_names_the_property(error: type[Exception]) -> None:
    """It has several ways to turn settings down."""

    class Refusing:
        DEFAULT_CONFIG = ("request_timeout_ms",)

        def __init__(self, **_settings: object) -> None:
            raise error("request_timeout_ms must be larger")

    client = KafkaPythonClient(["127.0.0.1:9"], "g", {"request.timeout.ms": 1}, SecuritySettings())
    with pytest.raises(kerr.KafkaConfigurationError) as raised:
        client._make(Refusing, {"request_timeout_ms": 1})
    problem = client.problem(raised.value)
    assert problem is not None
    assert problem.kind is ErrorKind.BAD_SETTINGS
    assert "request.timeout.ms must be larger" in problem.text
