"""Every option of the configuration file but Kafka's own, each described once. What is between them is `clashes`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_args

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from lstmstream.config.paths import variable_of
from lstmstream.config.properties import Properties, given_properties
from lstmstream.config.values import (
    Duration,
    FieldPath,
    FieldPaths,
    Float32,
    Line,
    Mechanism,
    ModelReference,
    Name,
    Protocol,
    Secret,
    Section,
    Servers,
    Size,
    Token,
    Topic,
    Whole,
    group_name,
    lower,
    section_of,
    upper,
)
from lstmstream.logs import Format, Level


class Log(Section):
    """`log`: what the daemon says on standard error."""

    level: Annotated[Level, BeforeValidator(lower)] = Field("info", description="The least severe events to log.")
    format: Format = Field("json", description="`json`: one object per line. `console`: for a person at a terminal.")


class Security(Section):
    """`kafka.security`: how to reach a broker that asks who one is."""

    protocol: Annotated[Protocol, BeforeValidator(upper)] = Field(
        "PLAINTEXT", description="How the connection is made; SSL means TLS 1.2 or newer, with verification."
    )
    mechanism: Annotated[Mechanism, BeforeValidator(upper)] | None = Field(
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

    bootstrap_servers: Servers = Field(
        description="Where to find the cluster: host:port, or several, as a list or with commas."
    )
    client: Literal["auto", "kafka-python", "confluent"] = Field(
        "auto", description="Client library; `auto` takes the fastest that is installed and built in."
    )
    security: Security
    properties: Annotated[dict[str, int | str], BeforeValidator(given_properties)] = Field(
        {}, description="Further settings of the client, under Kafka's dotted names."
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
    max_bytes: Size = Field(
        10_000_000, description="Largest record that is read; a larger one becomes a dead letter without its value."
    )


class Output(Section):
    """`output`: the predictions."""

    topic: Topic = Field(description="Topic of the predictions.")
    alerts_topic: Topic | None = Field(None, description="Topic that gets the alerts once more, by themselves.")
    threshold: Float32 | None = Field(
        None, description="Score from which on an answer is an alert (the model card's, if left out)."
    )
    include: FieldPaths = Field([], description="Fields of the event to carry along in its prediction.")
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

    device: Annotated[Literal["auto", "cpu", "cuda"], BeforeValidator(lower)] = Field(
        "auto", description="`cuda`: an NVIDIA GPU. `auto`: that where there is one, else the CPU."
    )
    threads: Annotated[Whole, Field(ge=1, le=256)] = Field(
        1, description="Threads of one step; more processes scale better than more threads."
    )


class Http(Section):
    """`http`: metrics, health and the live page."""

    host: Line = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for every IPv4 one.")
    port: Annotated[Whole, Field(ge=0, le=65535)] = Field(9108, description="Port to listen on; 0 for any free one.")
    token: Token | None = Field(
        None, description="Bearer token that guards `/state`; without one there is no `/state`."
    )
    stall_after: Annotated[Duration, Field(gt=0)] = Field(
        30.0, description="Time without progress of the loop after which `/livez` says 503."
    )


class Config(Section):
    """Everything that `lstmstream run` can be told. Durations are float seconds, sizes int bytes."""

    name: Name = Field(description="Consumer group, and prefix of the own topics.")
    model: ModelReference = Field(
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
    log: Log
    kafka: Kafka
    input: Input
    output: Output
    dead_letter: DeadLetters
    state: State
    batch: Batch
    device: Device
    http: Http

    _folder: Path = PrivateAttr(default_factory=Path)

    @property
    def folder(self) -> Path:
        """The folder that `model` and other relative paths start from: the configuration file's."""
        return self._folder

    @model_validator(mode="before")
    @classmethod
    def _named_topics(cls, data: object) -> object:
        """The topics that `name` gives where none is given. Runs before the sections are looked at."""
        if not isinstance(data, dict):
            return data
        try:
            prefix = group_name(data["name"])
        except (KeyError, TypeError, ValueError):
            return data  # told when `name` itself is looked at
        filled = dict(data)
        for section in ("dead_letter", "state"):
            keys = {} if data.get(section) is None else data[section]
            if isinstance(keys, dict) and keys.get("topic") is None:
                filled[section] = {**keys, "topic": f"{prefix}.{section.replace('_', '-')}"}
        return filled


class Option(NamedTuple):
    """One option as the manual shows it. `default` is None where a value must be given or nothing is the default."""

    path: str
    variable: str
    required: bool
    default: object
    description: str
    keys: tuple[str, ...]  # `path` in its parts: the last one may have dots of its own


def options() -> list[Option]:
    """Every option, in the order of the file."""
    return list(OPTIONS.values())


def options_of(section: type[Section], above: tuple[str, ...] = ()) -> Iterator[Option]:
    """Every option of a section and of those in it. A list of sections is an option, and its entries' options are."""
    for attribute, field in section.model_fields.items():
        keys = (*above, field.alias or attribute)
        inner = Properties if keys == ("kafka", "properties") else section_of(field.annotation)
        if inner is None:
            default = None if field.is_required() else field.default
            path = ".".join(keys)
            yield Option(path, variable_of(keys), field.is_required(), default, field.description or "", keys)
            inner = next(filter(None, map(section_of, get_args(field.annotation))), None)
        if inner is not None:
            yield from options_of(inner, keys)


OPTIONS = {option.path: option for option in options_of(Config)}
