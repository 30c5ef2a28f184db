"""The configuration: one YAML file and the environment. Every option is described here, once.

`load_config` tells everything that is wrong at once, each fault as `path: what is wrong; remedy`, and never a secret.
It knows nothing of brokers or models: what can only be known by asking them is for `lstmstream check`.

- Durations need a unit: `250ms`, `30s`, `5m`, `1h30m`, `7d`, in whole milliseconds; only 0 may go without.
- Sizes: `10MB` (10^7), `64KiB` (2^16), or a plain number of bytes.
- An empty value (`key:`, or an empty variable) is the same as leaving the key out.
- `LSTMSTREAM_KAFKA__CLIENT` overrides `kafka.client`, `LSTMSTREAM__DELIVERY` the top-level `delivery`,
  `LSTMSTREAM_KAFKA__PROPERTIES__SESSION_TIMEOUT_MS` the property `session.timeout.ms`. With `_FILE` at its end the
  variable names a file that holds the value; one line end at the file's end does not count.
- Paths in the file are relative to its folder.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    model_validator,
)

from lstmstream.errors import CannotServe
from lstmstream.logs import Format, Level, safe

PREFIX = "LSTMSTREAM"
FILE_LIMIT = 1_000_000  # bytes of YAML: far more than any configuration, far less than what hurts
SECRET_LIMIT = 65_536  # bytes of a file that a *_FILE variable names

# --- what a value may look like ------------------------------------------------------------------------------------

_DURATION = re.compile(r"(?:\d{1,12}(?:\.\d{1,6})?(?:ms|s|m|h|d))+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600), "d": Decimal(86400)}
_LONGEST_S = 36_500 * 86_400
_SIZE = re.compile(r"(\d{1,12}) ?(|b|kb|mb|gb|kib|mib|gib)", re.IGNORECASE)
_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_LEGAL_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_KAFKAS_OWN = frozenset({"__consumer_offsets", "__transaction_state", "__share_group_state", "__cluster_metadata"})
_SERVER = re.compile(r"(?:[A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.%]{2,60}\]):(\d{1,5})")
_NAME_MAX = 200  # characters; leaves room for `.dead-letter`
_FLOAT32_MAX = 3.4028234663852886e38
_INT32_MAX = 2**31 - 1


def _seconds(value: object) -> object:
    """A duration's text to float seconds, exact to the millisecond."""
    if (isinstance(value, int) and not isinstance(value, bool) and value == 0) or value == "0":
        return 0.0
    if isinstance(value, bool | int | float) or (isinstance(value, str) and re.fullmatch(r"[\d.]+", value)):
        raise ValueError("needs a unit; write it like 30s, 250ms, 5m, 12h or 7d")
    if not isinstance(value, str) or not _DURATION.fullmatch(value):
        raise ValueError("is no duration; write it like 30s, 250ms, 5m, 1h30m or 7d")
    total = sum((Decimal(n) * _SECONDS[unit] for n, unit in _DURATION_PART.findall(value)), start=Decimal(0))
    if total > _LONGEST_S:
        raise ValueError("is longer than a hundred years; write a shorter one")
    if total * 1000 % 1:
        raise ValueError("has a part of a millisecond; write whole milliseconds")
    return float(total)


def _bytes(value: object) -> object:
    """A size's text to bytes."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str) or not (match := _SIZE.fullmatch(value)):
        raise ValueError("is no size; write it like 10MB, 64KiB or a whole number of bytes")
    return int(match[1]) * _BYTES[match[2].lower()]


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("is true or false where a number belongs; write a number")  # noqa: TRY004 - pydantic's way
    return value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _topic(value: str) -> str:
    if not _LEGAL_NAME.fullmatch(value) or value in {".", ".."}:
        raise ValueError("is no legal topic name; use 1 to 249 of the letters a-z A-Z 0-9 . _ -")
    if value in _KAFKAS_OWN:
        raise ValueError("belongs to Kafka itself; name another topic")
    return value


def _name(value: str) -> str:
    if not _LEGAL_NAME.fullmatch(value) or value in {".", ".."} or len(value) > _NAME_MAX:
        raise ValueError(f"cannot begin the names of topics; use 1 to {_NAME_MAX} of the letters a-z A-Z 0-9 . _ -")
    return value


def _model(value: str) -> str:
    if not value.removeprefix("builtin:").strip() or "\0" in value:
        raise ValueError("names no model; give the path of a file, or builtin:NAME")
    return value


def _field_path(value: str) -> str:
    if len(value) > 1000 or not all(value.split(".")):
        raise ValueError("is no field of an event; write a name, with dots for nested ones: customer.id")
    return value


def _servers(value: list[str]) -> list[str]:
    if not value:
        raise ValueError("is empty; write host:port, or several with commas")
    for place, server in enumerate(value, start=1):
        match = _SERVER.fullmatch(server)
        if not match or not 0 < int(match[1]) < 65536:
            raise ValueError(f"entry {place} is not host:port; write it like broker-1:9092, without a protocol")
    return value


def _distinct(value: list[str]) -> list[str]:
    if len(set(value)) < len(value):
        raise ValueError("names a field twice; write each once")
    return value


def _token(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("cannot travel in a header; use printable ASCII without spaces")
    return value


def _filled(value: SecretStr) -> SecretStr:
    if not value.get_secret_value():
        raise ValueError("is empty; set it, or leave the key out")
    return value


def _single_line(value: str) -> str:
    if not value.strip() or not value.isprintable():
        raise ValueError("is empty or has unprintable characters; write it on one line")
    return value


Duration = Annotated[float, BeforeValidator(_seconds)]  # seconds
Size = Annotated[int, BeforeValidator(_bytes)]  # bytes
Whole = Annotated[int, BeforeValidator(_number)]
Real = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Topic = Annotated[str, AfterValidator(_topic)]
FieldPath = Annotated[str, AfterValidator(_field_path)]
Secret = Annotated[SecretStr, AfterValidator(_filled)]
Line = Annotated[str, AfterValidator(_single_line)]
Protocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]

Milliseconds = Annotated[Whole, Field(ge=0, le=_INT32_MAX)]
PositiveMs = Annotated[Whole, Field(ge=1, le=_INT32_MAX)]
ByteCount = Annotated[Whole, Field(ge=1, le=_INT32_MAX)]


# --- the options ---------------------------------------------------------------------------------------------------


class Section(BaseModel):
    """A group of options. Unknown keys are refused, and nothing can be changed once it is loaded."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, validate_by_name=False)

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, data: object) -> object:
        """An empty value is one that was left out; a missing section is an empty one, so that its keys are named."""
        if not isinstance(data, dict):
            return data
        known = {field.alias or name: field for name, field in cls.model_fields.items()}
        given = {key: value for key, value in data.items() if value is not None or key not in known}
        for name, field in known.items():
            if name not in given and _section_of(field.annotation):
                given[name] = {}
        return given


class Log(Section):
    """`log`: what the daemon says on standard error."""

    level: Annotated[Level, BeforeValidator(_lower)] = Field("info", description="The least severe events to log.")
    format: Format = Field("json", description="`json`: one object per line. `console`: for a person at a terminal.")


class Properties(Section):
    """`kafka.properties`: Kafka's own settings under Kafka's names, for those that may safely differ."""

    client_id: Line = Field("", alias="client.id", description="Name of this client in the broker's logs.")
    client_rack: Line = Field("", alias="client.rack", description="Rack of this process, to fetch from a near copy.")
    client_dns_lookup: Literal["use_all_dns_ips", "resolve_canonical_bootstrap_servers_only"] = Field(
        "use_all_dns_ips", alias="client.dns.lookup", description="How the brokers' host names are resolved."
    )
    metadata_max_age_ms: PositiveMs = Field(
        300_000, alias="metadata.max.age.ms", description="Age at which the list of topics and brokers is read again."
    )
    reconnect_backoff_ms: Milliseconds = Field(
        50, alias="reconnect.backoff.ms", description="Wait before connecting to a broker again."
    )
    reconnect_backoff_max_ms: Milliseconds = Field(
        1_000, alias="reconnect.backoff.max.ms", description="The most that this wait grows to."
    )
    retry_backoff_ms: Milliseconds = Field(5, alias="retry.backoff.ms", description="Wait before a request is retried.")
    request_timeout_ms: PositiveMs = Field(
        5_000, alias="request.timeout.ms", description="Longest wait for the answer to one request."
    )
    connections_max_idle_ms: PositiveMs = Field(
        540_000, alias="connections.max.idle.ms", description="Idle time after which a connection is closed."
    )
    receive_buffer_bytes: ByteCount = Field(
        65_536, alias="receive.buffer.bytes", description="The socket's SO_RCVBUF; the system's choice if left out."
    )
    send_buffer_bytes: ByteCount = Field(
        131_072, alias="send.buffer.bytes", description="The socket's SO_SNDBUF; the system's choice if left out."
    )

    session_timeout_ms: PositiveMs = Field(
        45_000, alias="session.timeout.ms", description="Silence after which the group drops this member."
    )
    heartbeat_interval_ms: PositiveMs = Field(
        3_000, alias="heartbeat.interval.ms", description="How often this member tells the group that it lives."
    )
    max_poll_interval_ms: PositiveMs = Field(
        60_000, alias="max.poll.interval.ms", description="Longest time between polls before the group drops it."
    )
    group_instance_id: Annotated[str, AfterValidator(_name)] = Field(
        "", alias="group.instance.id", description="Fixed name of this member: a quick restart keeps its partitions."
    )
    fetch_min_bytes: ByteCount = Field(1, alias="fetch.min.bytes", description="Bytes the broker waits to gather.")
    fetch_max_bytes: ByteCount = Field(
        52_428_800, alias="fetch.max.bytes", description="The most bytes of one answer from a broker."
    )
    fetch_max_wait_ms: Milliseconds = Field(
        500, alias="fetch.max.wait.ms", description="The longest the broker waits to gather fetch.min.bytes."
    )
    max_partition_fetch_bytes: ByteCount = Field(
        1_048_576, alias="max.partition.fetch.bytes", description="The most bytes of one partition in one answer."
    )

    batch_size: ByteCount = Field(
        262_144, alias="batch.size", description="The most bytes of one batch of records that is sent."
    )
    linger_ms: Milliseconds = Field(0, alias="linger.ms", description="Wait for more records before a batch is sent.")
    compression_type: Literal["none", "gzip", "snappy", "lz4", "zstd"] = Field(
        "none", alias="compression.type", description="Compression of what is written."
    )
    max_request_size: ByteCount = Field(
        1_048_576, alias="max.request.size", description="The most bytes of one request that is sent."
    )
    max_block_ms: PositiveMs = Field(
        10_000, alias="max.block.ms", description="Longest wait for room or for a topic's whereabouts when sending."
    )
    delivery_timeout_ms: PositiveMs = Field(
        8_000, alias="delivery.timeout.ms", description="Longest time until a record that was sent counts as failed."
    )
    transaction_timeout_ms: PositiveMs = Field(
        10_000, alias="transaction.timeout.ms", description="Age at which the broker aborts an open transaction."
    )


def _properties(value: object) -> object:
    """Those given, by Kafka's dotted names; each with its own type."""
    return Properties.model_validate(value).model_dump(by_alias=True, exclude_unset=True)


class Security(Section):
    """`kafka.security`: how to reach a broker that asks who one is."""

    protocol: Annotated[Protocol, BeforeValidator(_upper)] = Field(
        "PLAINTEXT", description="How the connection is made; SSL means TLS 1.2 or newer, with verification."
    )
    mechanism: Annotated[Mechanism, BeforeValidator(_upper)] | None = Field(
        None, description="SASL mechanism; needs `username` and `password`."
    )
    username: Line | None = Field(None, description="SASL user name.")
    password: Secret | None = Field(None, description="SASL password; better from the environment or a file.")
    ca: Path | None = Field(None, description="PEM file of the authorities to trust (the system's, if left out).")
    cert: Path | None = Field(None, description="PEM file of the client certificate, for mutual TLS; needs `key`.")
    key: Path | None = Field(None, description="PEM file of the client certificate's key.")
    key_password: Secret | None = Field(None, description="Passphrase of `key`, where it is encrypted.")
    insecure: bool = Field(default=False, description="Allow SASL_PLAINTEXT, which shows the password to the network.")


class Kafka(Section):
    """`kafka`: the broker and the client library."""

    bootstrap_servers: Annotated[list[str], BeforeValidator(_split), AfterValidator(_servers)] = Field(
        description="Where to find the cluster: host:port, or several, as a list or with commas."
    )
    client: Literal["auto", "kafka-python", "confluent"] = Field(
        "auto", description="Client library; `auto` takes the fastest that is installed and built in."
    )
    security: Security = Field(default_factory=Security, description="Encryption and authentication.")
    properties: Annotated[dict[str, int | str], BeforeValidator(_properties)] = Field(
        default_factory=dict, description="Further settings of the client, under Kafka's dotted names."
    )


class Input(Section):
    """`input`: the events."""

    topic: Topic = Field(description="Topic the events come from.")
    key: FieldPath | None = Field(None, description="Field that holds the entity key (the record's key, if left out).")
    timestamp: FieldPath | None = Field(
        None, description="Field that holds the event's time, ISO 8601 or epoch (the record's time, if left out)."
    )
    format: Literal["json"] = Field("json", description="How the events are written.")
    start: Literal["earliest", "latest"] = Field(
        "earliest", description="Where a group begins that has not committed anything yet."
    )
    late: Literal["apply", "score", "drop"] = Field(
        "apply",
        description="Events older than their key's last: feed them to the state, answer without, or dead-letter them.",
    )
    max_bytes: Annotated[Size, Field(ge=1, le=_INT32_MAX)] = Field(
        10_000_000, description="Largest record that is read; a larger one becomes a dead letter without its value."
    )


class Output(Section):
    """`output`: the predictions."""

    topic: Topic = Field(description="Topic of the predictions.")
    alerts_topic: Topic | None = Field(None, description="Topic that gets the alerts once more, by themselves.")
    threshold: Annotated[Real, Field(ge=-_FLOAT32_MAX, le=_FLOAT32_MAX)] | None = Field(
        None, description="Score from which on an answer is an alert (the model card's, if left out)."
    )
    include: Annotated[list[FieldPath], BeforeValidator(_split), AfterValidator(_distinct)] = Field(
        default_factory=list, description="Fields of the event to carry along in its prediction."
    )
    key: FieldPath | None = Field(
        None, description="Field that becomes the predictions' record key (the entity key, if left out)."
    )


class DeadLetters(Section):
    """`dead_letter`: the records that cannot be answered."""

    topic: Topic = Field("<name>.dead-letter", description="Topic of the dead letters.")


class State(Section):
    """`state`: what the model remembers of each key."""

    topic: Topic = Field("<name>.state", description="Compacted topic of the states.")
    checkpoint_interval: Annotated[Duration, Field(gt=0)] = Field(
        30.0, description="Latest time after a state's first change at which it is written."
    )
    ttl: Annotated[Duration, Field(gt=0)] | None = Field(
        None, description="Silence of a key, in event time, after which it starts with a fresh state (never)."
    )
    replay: Annotated[Duration, Field(gt=0)] = Field(
        604_800.0, description="How much of the input a new model's states are rebuilt from."
    )
    max_keys: Annotated[Whole, Field(ge=1)] | None = Field(None, description="The most keys held in memory (all).")
    dir: Path | None = Field(None, description="Folder of local snapshots of the states (none).")


class Batch(Section):
    """`batch`: how many events go through the model at once."""

    max_events: Annotated[Whole, Field(ge=1, le=100_000)] = Field(4096, description="The most events of one batch.")
    max_wait: Annotated[Duration, Field(ge=0)] = Field(
        0.0, description="How long to wait for a fuller batch; 0ms takes what is there."
    )


class Device(Section):
    """`device`: where the model runs."""

    device: Annotated[Literal["auto", "cpu", "cuda"], BeforeValidator(_lower)] = Field(
        "auto", description="`cuda`: an NVIDIA GPU. `auto`: that where there is one, else the CPU."
    )
    threads: Annotated[Whole, Field(ge=1, le=256)] = Field(
        1, description="Threads of one step; more processes scale better than more threads."
    )


class Http(Section):
    """`http`: metrics, health and the live page."""

    host: Line = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for every IPv4 one.")
    port: Annotated[Whole, Field(ge=0, le=65535)] = Field(9108, description="Port to listen on; 0 for any free one.")
    token: Annotated[SecretStr, AfterValidator(_token)] | None = Field(
        None, description="Bearer token that guards `/state`; without one there is no `/state`."
    )
    stall_after: Annotated[Duration, Field(gt=0)] = Field(
        30.0, description="Time without progress of the loop after which `/livez` says 503."
    )


class Config(Section):
    """Everything that `lstmstream run` can be told. Durations are float seconds, sizes int bytes."""

    name: Annotated[str, AfterValidator(_name)] = Field(description="Consumer group, and prefix of the own topics.")
    model: Annotated[str, AfterValidator(_model)] = Field(
        description="The model: path of a file, relative to this file's folder, or builtin:NAME."
    )
    delivery: Literal["exactly_once", "at_least_once"] = Field(
        "exactly_once", description="`at_least_once`: lower latency, duplicates possible after a crash."
    )
    on_model_change: Literal["fail", "reset", "replay"] = Field(
        "fail", description="What to do with another model's states: stop, start afresh, or rebuild from the input."
    )
    create_topics: bool = Field(
        default=True, description="Create the topics that the daemon owns where they are missing."
    )
    shutdown_timeout: Annotated[Duration, Field(gt=0)] = Field(
        30.0, description="Longest time a clean stop may take before the process leaves with exit code 1."
    )
    log: Log = Field(default_factory=Log, description="What the daemon says on standard error.")
    kafka: Kafka = Field(description="The broker and the client library.")
    input: Input = Field(description="The events.")
    output: Output = Field(description="The predictions.")
    dead_letter: DeadLetters = Field(default_factory=DeadLetters, description="The records that cannot be answered.")
    state: State = Field(default_factory=State, description="What the model remembers of each key.")
    batch: Batch = Field(default_factory=Batch, description="How many events go through the model at once.")
    device: Device = Field(default_factory=Device, description="Where the model runs.")
    http: Http = Field(default_factory=Http, description="Metrics, health and the live page.")

    _folder: Path = PrivateAttr(default_factory=Path)

    @property
    def folder(self) -> Path:
        """The folder that `model` and other relative paths start from: the configuration file's."""
        return self._folder

    @model_validator(mode="before")
    @classmethod
    def _named_topics(cls, data: object) -> object:
        """The topics that `name` gives where none is given. Runs before the sections are looked at."""
        name = data.get("name") if isinstance(data, dict) else None
        if not isinstance(data, dict) or not isinstance(name, str) or not _LEGAL_NAME.fullmatch(name):
            return data
        filled = dict(data)
        for section, ending in (("dead_letter", "dead-letter"), ("state", "state")):
            keys = filled.get(section) or {}
            if isinstance(keys, dict) and keys.get("topic") is None:
                filled[section] = {**keys, "topic": f"{name[:_NAME_MAX]}.{ending}"}
        return filled


class Option(NamedTuple):
    """One option as the manual shows it. `default` is None where a value must be given or nothing is the default."""

    path: str
    required: bool
    default: object
    description: str


def options() -> list[Option]:
    """Every option, in the order of the file."""
    return list(_options(Config, ""))


def load_config(path: Path | None, environ: Mapping[str, str] = os.environ) -> Config:
    """The configuration of the YAML file at `path` (None: no file) and of the variables in `environ`.

    Raises CannotServe with one line for each thing that is wrong, all of them at once.
    """
    tree = {} if path is None else _read_yaml(path)
    sources, problems = _override(tree, environ)
    folder = (Path() if path is None else path.parent).resolve()
    config, more = _validate(tree, folder, sources)
    problems += more
    if config is None or problems:
        raise CannotServe(*problems)
    return config


# --- the file ------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Safe YAML without what a configuration has no use for: aliases, merges, keys given twice or that are no text."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise _Fault("an alias (*name) is not supported; write the value out", self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        if not isinstance(node, yaml.MappingNode):
            raise _Fault("a mapping of keys and values belongs here", node.start_mark)
        seen: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                raise _Fault("a key here is no text; put it in quotes", key_node.start_mark)
            if key_node.value in seen:
                raise _Fault(f"the key {_key(key_node.value)} stands here twice; keep one", key_node.start_mark)
            seen[key_node.value] = self.construct_object(value_node, deep=True)
        return seen


class _Fault(yaml.MarkedYAMLError):
    """A fault of ours at a place in the file. Its text holds nothing of the file but names of keys."""

    def __init__(self, problem: str, mark: yaml.Mark | None) -> None:
        super().__init__(problem=problem, problem_mark=mark)


def _read_yaml(path: Path) -> dict[str, Any]:
    """The file as a tree. Its text never enters an error: a line that is wrong may hold a password."""
    place = safe(str(path), 1000)
    problem = ""
    tree: object = None
    try:
        if not path.is_file():
            missing = "is no file" if path.exists() else "does not exist"
            raise CannotServe(f"{place}: {missing}; give the path of a YAML file")
        with path.open("rb") as file:
            content = file.read(FILE_LIMIT + 1)
        if len(content) > FILE_LIMIT:
            raise CannotServe(f"{place}: is larger than {FILE_LIMIT} bytes; is this the configuration?")
        tree = yaml.load(content.decode("utf-8-sig"), Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        reason = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else f"cannot be read ({error.strerror})"
        problem = f"{place}: {reason}; give a YAML file that can be read"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        text = error.problem if isinstance(error, _Fault) else re.sub(r"'..+'", "this", error.problem or "bad YAML")
        problem = f"{place}: {where}{safe(text)}"
    except (yaml.YAMLError, ValueError, OverflowError, ArithmeticError):
        problem = f"{place}: is no YAML, or has a number, date or character that YAML cannot hold; put it in quotes"
    except RecursionError:
        problem = f"{place}: is nested too deeply; a configuration has three levels"
    if problem:
        raise CannotServe(problem)
    if tree is None:
        raise CannotServe(f"{place}: is empty; the least that runs has name, model, kafka, input and output")
    if not isinstance(tree, dict):
        raise CannotServe(f"{place}: must be a mapping of keys at the top; write `key: value` lines")
    return tree


# --- the environment -----------------------------------------------------------------------------------------------


def _override(tree: dict[str, Any], environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Put the variables' values into `tree`. Returns which variable gave which path, and what is wrong."""
    known = {_variable(path): path for path in _paths(Config, ())}
    sources: dict[str, str] = {}
    problems: list[str] = []
    for variable in sorted(environ):
        if not variable.startswith(f"{PREFIX}_") or "__" not in variable:
            continue
        stem = variable if variable in known else variable.removesuffix("_FILE")
        if stem not in known:
            near = difflib.get_close_matches(variable, known, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}?" if near else "take it away, or name a key of the configuration"
            problems.append(f"{safe(variable)}: names no key; {hint}")
            continue
        if stem != variable and stem in environ:
            problems.append(f"{variable}: {stem} is set as well; keep one")
            continue
        path = known[stem]
        try:
            value = environ[variable] if stem == variable else _secret(environ[variable])
        except (OSError, ValueError) as error:
            # The path stays unsaid: some put the secret itself there.
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8, no file, or too large"
            problems.append(f"{variable}: cannot read the file it names ({reason}); give a readable file")
            continue
        _put(tree, path, value or None)
        sources[".".join(path)] = variable
    return sources, problems


def _secret(path: str) -> str:
    file = Path(path)
    if file.exists() and not file.is_file():
        raise ValueError("no file")
    with file.open("rb") as opened:
        content = opened.read(SECRET_LIMIT + 1)
    if len(content) > SECRET_LIMIT:
        raise ValueError("too large")
    return content.decode().removesuffix("\n").removesuffix("\r")


def _variable(path: tuple[str, ...]) -> str:
    section_and_key = "_" + path[0] if len(path) == 1 else "__".join(path)
    return f"{PREFIX}_{section_and_key}".replace(".", "_").upper()


def _put(tree: dict[str, Any], path: tuple[str, ...], value: str | None) -> None:
    """Set it, making the sections on the way. A section that is none stays: that is told later."""
    *sections, key = path
    branch: Any = tree
    for section in sections:
        if branch.get(section) is None:
            branch[section] = {}
        branch = branch[section]
        if not isinstance(branch, dict):
            return
    branch[key] = value


def _get(tree: dict[str, Any], path: tuple[str, ...]) -> object:
    branch: object = tree
    for step in path:
        branch = branch.get(step) if isinstance(branch, dict) else None
    return branch


# --- judging it ----------------------------------------------------------------------------------------------------

_HIDDEN = ("kafka.security", "kafka.properties", "kafka.bootstrap_servers", "http.token")  # values never shown
_WANTED = {
    "string_type": "must be text; put it in quotes",
    "string_unicode": "has characters that UTF-8 cannot hold; write it anew",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "must be a whole number of less size",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be finite; write an ordinary number",
    "list_type": "must be a list; write [one, other], or one, other",
    "model_type": "must be a section of keys; indent them below it",
    "model_attributes_type": "must be a section of keys; indent them below it",
    "path_type": "must be the path of a file",
}
_OURS = "the daemon sets this itself; take it away"
REFUSED_PROPERTIES = {
    "group.id": "the group is `name`; set that",
    "transactional.id": "the daemon makes its own, which the fence against a second owner needs; take it away",
    "enable.auto.commit": "offsets are committed with the answers, never by the clock; take it away",
    "auto.offset.reset": "it could skip or repeat events without a word; set `input.start` for a new group",
    "isolation.level": "only committed records may be read; take it away",
    "acks": "answers must reach every in-sync copy; take it away",
    "enable.idempotence": "without it a retry writes twice; take it away",
    "partition.assignment.strategy": "states move with their partitions, cooperatively; take it away",
    "bootstrap.servers": "set `kafka.bootstrap_servers`",
    "max.poll.records": "set `batch.max_events`",
    "security.protocol": "set `kafka.security.protocol`",
    "sasl.mechanism": "set `kafka.security.mechanism`",
    "auto.commit.interval.ms": "offsets are committed with the answers, never by the clock; take it away",
    "allow.auto.create.topics": "set `create_topics`",
    "check.crcs": _OURS,
    "retries": "`delivery.timeout.ms` bounds the retries; set that",
    "max.in.flight.requests.per.connection": _OURS,
    "key.serializer": _OURS,
    "value.serializer": _OURS,
    "key.deserializer": _OURS,
    "value.deserializer": _OURS,
}
# Stand in for what is missing or wrong, so that the rest can still be judged; never part of a result.
_STANDINS: dict[tuple[str, ...], str] = {
    ("name",): "standin",
    ("model",): "standin",
    ("kafka", "bootstrap_servers"): "standin:1",
    ("input", "topic"): "standin-input",
    ("output", "topic"): "standin-output",
}


class _Clash(NamedTuple):
    """Something wrong between keys: told at the first of `paths`, unless one of them is wrong by itself."""

    paths: tuple[str, ...]
    text: str


def _validate(tree: dict[str, Any], folder: Path, sources: Mapping[str, str]) -> tuple[Config | None, list[str]]:
    problems: list[tuple[str, str]] = []
    config: Config | None = None
    judged: Config | None = None
    wrong: set[str] = set()
    try:
        config = judged = Config.model_validate(tree)
    except ValidationError as error:
        faults = list(_faults(error))
        wrong = {".".join(_strings(fault["loc"])) for fault in faults}
        problems += [_explain(fault) for fault in faults]
        judged = _rest(tree, [_strings(fault["loc"]) for fault in faults])
    except RecursionError:
        problems.append(("configuration", "is nested too deeply; it has three levels"))
    if judged is not None:
        judged._folder = folder
        for clash in _clashes(judged):
            if not any(f"{path}.".startswith(f"{bad}.") for path in clash.paths for bad in wrong):
                problems.append((clash.paths[0], clash.text))
    lines = []
    for path, text in problems:
        variable = next((name for given, name in sources.items() if f"{path}.".startswith(f"{given}.")), None)
        lines.append(f"{path}: {text}" + (f" (from {variable})" if variable else ""))
    return config, lines


def _faults(error: ValidationError) -> Iterator[dict[str, Any]]:
    """The error's parts; those of `kafka.properties`, which is judged by itself, with their place in front."""
    for fault in error.errors(include_url=False):
        inner = fault.get("ctx", {}).get("error")
        if isinstance(inner, ValidationError):
            for part in _faults(inner):
                yield {**part, "loc": (*fault["loc"], *part["loc"])}
        else:
            yield dict(fault)


def _explain(fault: Mapping[str, Any]) -> tuple[str, str]:
    """A fault's path, and what is wrong and how to mend it."""
    loc = _strings(fault["loc"])
    path = ".".join([*loc[:-1], _key(loc[-1])]) if loc else "configuration"
    kind = fault["type"]
    if kind == "extra_forbidden":
        return path, _unknown(loc)
    if kind == "missing":
        return path, f"is missing; {_description(loc)}"
    text = str(fault["ctx"]["error"]) if kind == "value_error" else _WANTED.get(kind, "")
    if kind == "literal_error":
        text = f"must be one of {fault['ctx']['expected']}".replace("'", "").replace(" or ", ", ")
    if not text:
        text = str(fault["msg"]).replace("Input should be", "must be")
    value = fault.get("input")
    if isinstance(value, str | int | float) and not any(_within(path, hidden) for hidden in _HIDDEN):
        text += f"; got {safe(repr(value) if isinstance(value, str) else value, 80)}"
    return path, text


def _within(path: str, other: str) -> bool:
    """Whether one of the two is, or holds, the other."""
    return f"{path}.".startswith(f"{other}.") or f"{other}.".startswith(f"{path}.")


def _unknown(loc: tuple[str, ...]) -> str:
    *sections, key = loc
    section: type[Section] = Config
    for name in sections:
        section = Properties if name == "properties" else _section_of(section.model_fields[name].annotation) or section
    if section is Properties:
        if key in REFUSED_PROPERTIES:
            return f"is not yours to set: {REFUSED_PROPERTIES[key]}"
        if key.startswith(("sasl.", "ssl.")):
            return "is set under `kafka.security`; see its keys"
    known = [field.alias or name for name, field in section.model_fields.items()]
    if key.endswith("_file") and key.removesuffix("_file") in known:
        return f"unknown key; set the variable {_variable((*sections, key))}"
    if not re.fullmatch(r"[\w.-]+", key) and re.match(r"[\w.-]+:", key):
        return "unknown key; put a space after the colon"
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6) or difflib.get_close_matches(
        key.replace("_", "."), known, n=1, cutoff=0.6
    )
    return f"unknown key; did you mean {near[0]}?" if near else f"unknown key; known here: {', '.join(known)}"


def _rest(tree: dict[str, Any], bad: list[tuple[str, ...]]) -> Config | None:
    """The configuration without its bad parts, for judging what is between the others. None: too little is left."""
    rest = {key: _copy(value) for key, value in tree.items()}
    for loc in bad:
        branch: Any = rest
        for step in loc:
            if not isinstance(branch.get(step), dict) or step == loc[-1]:
                branch.pop(step, None)
                break
            branch = branch[step]
    for path, value in _STANDINS.items():
        if _get(rest, path) is None:
            _put(rest, path, value)
    try:
        return Config.model_validate(rest)
    except ValidationError:
        return None


def _clashes(config: Config) -> Iterator[_Clash]:
    """Everything that no key by itself can be blamed for, and what is in the contract and not built yet."""
    yield from _not_built(config)
    yield from _topics(config)
    yield from _security(config.kafka.security)
    yield from _certificates(config.kafka.security, config.folder)
    yield from _timing(config)


def _not_built(config: Config) -> Iterator[_Clash]:
    if config.on_model_change == "replay":
        yield _Clash(("on_model_change",), "replay is not built yet; use fail or reset")
    if config.kafka.client == "confluent":
        yield _Clash(("kafka.client",), "confluent is not built yet; use auto or kafka-python")
    if config.state.dir is not None:
        yield _Clash(("state.dir",), "local snapshots are not built yet; take it away")
    if config.state.max_keys is not None:
        yield _Clash(("state.max_keys",), "a bound on the keys is not built yet; take it away")


def _topics(config: Config) -> Iterator[_Clash]:
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
            yield _Clash((path, first), f"is the topic of {first} (. and _ count as one); give each its own")


def _security(security: Security) -> Iterator[_Clash]:
    at = "kafka.security"
    sasl = security.protocol.startswith("SASL_")
    if security.protocol == "SASL_PLAINTEXT" and not security.insecure:
        yield _Clash(
            (f"{at}.protocol", f"{at}.insecure"),
            "SASL_PLAINTEXT shows the password to the network; use SASL_SSL, or set insecure: true",
        )
    if sasl and security.mechanism is None:
        choice = ", ".join(get_args(Mechanism))
        yield _Clash((f"{at}.mechanism", f"{at}.protocol"), f"is missing for {security.protocol}; one of {choice}")
    if security.mechanism is not None and not sasl:
        yield _Clash((f"{at}.mechanism", f"{at}.protocol"), "needs the protocol SASL_SSL; set kafka.security.protocol")
    for name, value in (("username", security.username), ("password", security.password)):
        if security.mechanism is not None and value is None:
            yield _Clash((f"{at}.{name}", f"{at}.mechanism"), "is missing, and the mechanism needs it; set it")
        if security.mechanism is None and not sasl and value is not None:
            yield _Clash((f"{at}.{name}", f"{at}.mechanism"), "has no use without a mechanism; set that too")
    if (security.cert is None) != (security.key is None):
        have, lack = ("cert", "key") if security.key is None else ("key", "cert")
        yield _Clash((f"{at}.{lack}", f"{at}.{have}"), f"is missing, and {have} needs it; set it")
    if security.key_password is not None and security.key is None:
        yield _Clash((f"{at}.key_password", f"{at}.key"), "has no use without key; set that too")


def _certificates(security: Security, folder: Path) -> Iterator[_Clash]:
    at = "kafka.security"
    for name, file in (("ca", security.ca), ("cert", security.cert), ("key", security.key)):
        if file is None:
            continue
        if not security.protocol.endswith("SSL"):
            yield _Clash((f"{at}.{name}", f"{at}.protocol"), "needs the protocol SSL or SASL_SSL; set it")
        if problem := _unreadable(folder / file):
            yield _Clash((f"{at}.{name}",), f"{problem}; give a PEM file")
        elif name == "key" and security.key_password is None and b"ENCRYPTED" in (folder / file).read_bytes():
            yield _Clash((f"{at}.key_password", f"{at}.key"), "is missing, and key is encrypted; set it")


def _unreadable(file: Path) -> str:
    try:
        if not file.is_file():
            return "names no file"
        with file.open("rb") as opened:
            return "is too large" if len(opened.read(FILE_LIMIT + 1)) > FILE_LIMIT else ""
    except (OSError, ValueError) as error:
        return f"cannot be read ({getattr(error, 'strerror', None) or 'bad path'})"


def _timing(config: Config) -> Iterator[_Clash]:
    given = config.kafka.properties

    def ms(name: str) -> int:
        return int(given.get(name, Properties.model_fields[name.replace(".", "_")].default))

    for less, more in (
        ("heartbeat.interval.ms", "session.timeout.ms"),
        ("fetch.max.wait.ms", "request.timeout.ms"),
        ("request.timeout.ms", "connections.max.idle.ms"),
    ):
        if {less, more} & given.keys() and ms(less) >= ms(more):
            paths = sorted((less, more), key=lambda name: name not in given)
            yield _Clash(
                tuple(f"kafka.properties.{name}" for name in paths),
                f"{less} ({ms(less)}) must be less than {more} ({ms(more)}); change one",
            )
    wait = config.batch.max_wait
    if wait * 1000 >= ms("max.poll.interval.ms"):
        yield _Clash(
            ("batch.max_wait", "kafka.properties.max.poll.interval.ms"),
            "must be less than max.poll.interval.ms, or the group drops this member; shorten it",
        )
    if wait >= config.http.stall_after:
        yield _Clash(("batch.max_wait", "http.stall_after"), "must be less than http.stall_after; shorten it")


# --- the options as data -------------------------------------------------------------------------------------------


def _section_of(annotation: object) -> type[Section] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _options(section: type[Section], prefix: str) -> Iterator[Option]:
    for name, field in section.model_fields.items():
        path = prefix + (field.alias or name)
        inner = Properties if path == "kafka.properties" else _section_of(field.annotation)
        if inner is not None:
            yield from _options(inner, f"{path}.")
        else:
            default = None if field.is_required() else field.get_default(call_default_factory=True, validated_data={})
            yield Option(path, field.is_required(), default, field.description or "")


def _paths(section: type[Section], prefix: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for name, field in section.model_fields.items():
        path = (*prefix, field.alias or name)
        inner = Properties if path == ("kafka", "properties") else _section_of(field.annotation)
        if inner is not None:
            yield from _paths(inner, path)
        else:
            yield path


def _description(loc: tuple[str, ...]) -> str:
    path = ".".join(loc)
    text = next((option.description for option in options() if option.path == path), "set it")
    return text[:1].lower() + text[1:].rstrip(".")


def _strings(loc: tuple[int | str, ...]) -> tuple[str, ...]:
    return tuple(str(part) for part in loc)


def _key(key: str) -> str:
    """A key as it may be shown: `password:secret`, for want of a space, is one key to YAML."""
    name = re.match(r"[\w.-]*", key)
    shown = name[0] if name else ""
    return shown[:80] if shown == key else f"{shown[:80]}…"


def _copy(value: Any) -> Any:
    return {key: _copy(inner) for key, inner in value.items()} if isinstance(value, dict) else value
