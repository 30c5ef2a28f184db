"""Every option of the daemon's configuration, each described once. Kafka's own settings are in `properties`.

`validation` finds conflicts between options.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from lstmstream.config.document import Conflict, Document
from lstmstream.config.options import KeysOf
from lstmstream.config.paths import Keys
from lstmstream.config.properties import Properties, given_properties
from lstmstream.config.types import (
    AddedFields,
    Duration,
    FieldPath,
    FieldPaths,
    Float32,
    Folder,
    Format,
    HttpUrl,
    KeyPatterns,
    Mechanism,
    ModelReference,
    Name,
    Protocol,
    ScalarText,
    Secret,
    Section,
    Servers,
    Sha256,
    SingleLine,
    Size,
    Start,
    StrictInt,
    Token,
    Topic,
    Unwrap,
    group_name,
    lower,
    upper,
)
from lstmstream.config.validation import daemon_conflicts
from lstmstream.logs import Format as LogFormat
from lstmstream.logs import Level

MAX_FUTURE_S = 365 * 86_400.0
RESET_AFTER = 10

_PLACEHOLDERS: dict[Keys, str] = {
    ("name",): "placeholder",
    ("model",): "placeholder",
    ("kafka", "bootstrap_servers"): "placeholder:1",
    ("input", "topic"): "placeholder-input",
    ("output", "topic"): "placeholder-output",
}


class Log(Section):
    """`log`: the log on standard error."""

    level: Annotated[Level, BeforeValidator(lower)] = Field("info", description="Minimum severity that is logged.")
    format: LogFormat = Field("json", description="`json`: one object per line. `console`: plain text for a terminal.")


class OAuth(Section):
    """`kafka.security.oauth`: where the tokens of SASL OAUTHBEARER come from."""

    token: Secret | None = Field(
        None,
        description="Bearer token. Set by a variable that ends in _FILE, its file is read again for each connection.",
    )
    token_url: HttpUrl | None = Field(
        None, description="Token endpoint, in place of `token`: asked with the client's credentials."
    )
    client_id: SingleLine | None = Field(None, description="Client id for `token_url`.")
    client_secret: Secret | None = Field(
        None, description="Client secret for `token_url`; better set by an environment variable or a file."
    )
    scope: SingleLine | None = Field(None, description="Scope that `token_url` is asked for. Default: none.")
    ca: Path | None = Field(
        None, description="PEM file of the authorities trusted for `token_url`. Default: the system's."
    )


class Security(Section):
    """`kafka.security`: encryption and authentication."""

    protocol: Annotated[Protocol, BeforeValidator(upper)] = Field(
        "PLAINTEXT", description="Security protocol; SSL is TLS 1.2 or newer, with verification."
    )
    mechanism: Annotated[Mechanism, BeforeValidator(upper)] | None = Field(
        None, description="SASL mechanism; needs `username` and `password`, or for OAUTHBEARER `oauth`."
    )
    username: SingleLine | None = Field(None, description="SASL user name.")
    password: Secret | None = Field(None, description="SASL password; better set by an environment variable or a file.")
    ca: Path | None = Field(None, description="PEM file of the trusted certificate authorities. Default: the system's.")
    cert: Path | None = Field(None, description="PEM file of the client certificate, for mutual TLS; needs `key`.")
    key: Path | None = Field(None, description="PEM file of the client certificate's key.")
    key_password: Secret | None = Field(None, description="Passphrase of `key`, if it is encrypted.")
    oauth: OAuth
    insecure: bool = Field(
        default=False,
        description="Allow SASL_PLAINTEXT, and an `oauth.token_url` over http, which send secrets unencrypted.",
    )


class SchemaRegistry(Section):
    """`kafka.schema_registry`: where the schemas of Avro and Protobuf events are."""

    url: HttpUrl | None = Field(
        None, description="Address of the registry, with the API of Confluent's: http://host:8081 or https://…."
    )
    username: SingleLine | None = Field(None, description="User name for HTTP basic authentication.")
    password: Secret | None = Field(
        None, description="Password of that user; better set by an environment variable or a file."
    )
    ca: Path | None = Field(None, description="PEM file of the trusted certificate authorities. Default: the system's.")
    timeout: Annotated[Duration, Field(gt=0, le=60)] = Field(
        5.0, description="How long the registry may take for one answer."
    )
    insecure: bool = Field(default=False, description="Allow a password over http, which sends it unencrypted.")


class Kafka(Section):
    """`kafka`: the broker and the client library."""

    bootstrap_servers: Servers = Field(
        description="Addresses of the cluster: host:port; several as a list or separated by commas."
    )
    client: Literal["auto", "kafka-python", "confluent"] = Field(
        "auto", description="Client library; `auto` uses the fastest one that is installed."
    )
    security: Security
    schema_registry: SchemaRegistry
    properties: Annotated[dict[str, int | str], KeysOf(Properties), BeforeValidator(given_properties)] = Field(
        {}, description="Further settings of the client, under Kafka's dotted names."
    )


class SilentEvents(Section):
    """`input.silent`: which events move their key's state without a prediction."""

    field: FieldPath | None = Field(
        None,
        description="Field that marks events without a prediction, such as labels that arrive late: they update the"
        " state of their key as any other event does.",
    )
    equals: ScalarText | None = Field(
        None, description="The value of that field in such events: text, a whole number or a boolean."
    )

    @property
    def mark(self) -> tuple[str, str] | None:
        """The field and its value; None where every event has a prediction."""
        return None if self.field is None or self.equals is None else (self.field, self.equals)


class Input(Section):
    """`input`: the events."""

    topic: Topic = Field(description="Topic to read events from.")
    key: FieldPath | None = Field(None, description="Field that holds the entity key. Default: the record's key.")
    timestamp: FieldPath | None = Field(
        None, description="Field that holds the event time, ISO 8601 or epoch. Default: the record's timestamp."
    )
    format: Format = Field(
        "json",
        description="Format of the record values. `avro` and `protobuf` take their schemas from kafka.schema_registry;"
        " `json_schema`: JSON behind the prefix of a schema registry's serializer.",
    )
    unwrap: Unwrap | None = Field(
        None,
        description="Envelope around the event. `after`: the row after a change of Debezium. `cloudevents`: the data of"
        " a CloudEvent, with its attributes as fields `ce_NAME`. Default: none.",
    )
    start: Start = Field(
        "earliest",
        description="Where to begin when the group has no committed offset: at one of the ends of the topic, or at the"
        " first record with this Kafka timestamp or a later one (a time as 2026-11-28T06:00:00Z, or `7d`: seven days"
        " ago).",
    )
    silent: SilentEvents
    late: Literal["apply", "score", "drop"] = Field(
        "apply",
        description="Events older than the newest of their key: update the state, score only, or dead-letter them.",
    )
    on_foreign_commit: Literal["fail", "accept"] = Field(
        "fail",
        description="When another program moved the group's offset forward: stop, or continue without predictions for"
        " the skipped records.",
    )
    max_future: Annotated[Duration, Field(gt=0)] = Field(
        MAX_FUTURE_S,
        description="Events whose time field is further than this after the record's timestamp become dead letters.",
    )
    max_lateness: Annotated[Duration, Field(ge=0)] | None = Field(
        None,
        description="Events older than the newest event of their partition by more than this become dead letters. With"
        " `state.ttl`, expired keys are then removed. Default: no bound.",
    )
    max_bytes: Size = Field(
        10_000_000, description="Maximum size of a record; a larger one becomes a dead letter without its value."
    )


class OutputEvents(Section):
    """`output.events`: the events once more, with outputs of the model added, for a next stage."""

    topic: Topic | None = Field(
        None, description="Topic that receives each event that has a prediction once more, with the fields of `add`."
    )
    key: FieldPath | None = Field(None, description="Field that becomes their record key. Default: the entity key.")
    add: AddedFields = Field(
        {},
        description="Fields to add: name → `score`, `alert`, `steps`, or a column of the prediction by its number or"
        " its name in the model: `prediction[0]`, `prediction[fraud.mean_7d]`. An event that has one of them already,"
        " or no key, becomes a dead letter.",
    )


class Output(Section):
    """`output`: the predictions."""

    topic: Topic = Field(description="Topic of the predictions.")
    format: Literal["json", "avro"] = Field(
        "json",
        description="Format of predictions and alerts. `avro`: with a schema that is registered in"
        " kafka.schema_registry as `<topic>-value`.",
    )
    cloudevents: Literal["binary", "structured"] | None = Field(
        None,
        description="Make CloudEvents of predictions and alerts: with attributes in headers, or with an envelope."
        " Default: neither.",
    )
    alerts_topic: Topic | None = Field(None, description="Topic that receives a copy of each alert.")
    threshold: Float32 | None = Field(
        None, description="Scores at or above this are alerts. Default: the model card's threshold."
    )
    include: FieldPaths = Field([], description="Fields of the event to copy into its prediction.")
    reasons: Annotated[StrictInt, Field(ge=0, le=1000)] = Field(
        0,
        description="Maximum number of features that an alert names as its reasons, largest first; 0: none. An alert"
        " then costs one more model step per feature.",
    )
    key: FieldPath | None = Field(
        None, description="Field that becomes the record key of the predictions. Default: the entity key."
    )
    events: OutputEvents


class Alerts(Section):
    """`alerts`: which alerts are published, and which are held back."""

    cooldown: Annotated[Duration, Field(gt=0)] | None = Field(
        None,
        description="After an alert, further ones of its key are held back for this long (event time). Default: none is"
        " held back.",
    )
    hold: bool = Field(
        default=False,
        description="One alert per incident: it goes on until its key has been below the threshold, or has had no"
        " events, for `cooldown`, which it needs.",
    )
    end_record: bool = Field(
        default=False,
        description="Write an end record to `output.alerts_topic` when an incident is over; needs `hold`.",
    )
    max_per_hour: Annotated[StrictInt, Field(ge=1, le=1_000_000)] | None = Field(
        None,
        description="Maximum number of alerts per partition and hour (event time). A summary record in"
        " `output.alerts_topic` tells how many more there were. Default: no limit.",
    )
    mute: KeyPatterns = Field(
        [], description="Keys whose alerts are held back; `*` stands for any text, `?` for one character."
    )

    @property
    def any(self) -> bool:
        """Whether an alert may be held back."""
        return self.cooldown is not None or self.max_per_hour is not None or bool(self.mute)


class DeadLetters(Section):
    """`dead_letter`: the records that could not be turned into a prediction."""

    topic: Topic = Field("<name>.dead-letter", description="Topic of the dead letters.")


class State(Section):
    """`state`: what the model remembers of each key."""

    topic: Topic = Field(
        "<name>.state", description="Compacted topic of the states; daemons of other names need others."
    )
    checkpoint_interval: Annotated[Duration, Field(gt=0)] = Field(
        30.0, description="A changed state is written to the state topic no later than this."
    )
    ttl: Annotated[Duration, Field(gt=0)] | None = Field(
        None, description="A key without events for this long (event time) starts with a fresh state. Default: never."
    )
    reset_after_failures: Annotated[StrictInt, Field(ge=1, le=65_535)] = Field(
        RESET_AFTER,
        description="A key starts with a fresh state after this many events in a row that fail because of its state.",
    )
    replay: Annotated[Duration, Field(gt=0)] = Field(
        604_800.0,
        description="With `on_model_change: replay`: how far back in the input a new model's states are rebuilt from,"
        " by the records' timestamps, before the newest record that was answered.",
    )
    keep_old_models: Duration | None = Field(
        604_800.0,
        description="How long the states of a model that was replaced are kept after their last write, so that going"
        " back to it needs no rebuild. `null`: for ever.",
    )
    max_keys: Annotated[StrictInt, Field(ge=1)] | None = Field(
        None,
        description="Maximum number of keys of a partition that have a state; the state of the least recently seen key"
        " is discarded for a new one. Default: no limit.",
    )
    dir: Folder | None = Field(
        None,
        description="Folder for local snapshots of the states, which make a restart faster. Relative to the"
        " configuration file. Default: no snapshots.",
    )
    standby: Annotated[StrictInt, Field(ge=0, le=100)] = Field(
        0,
        description="Number of other members of the group whose states this member follows in memory, so that it takes"
        " over their partitions faster. 0: none.",
    )


class Batch(Section):
    """`batch`: how many events go through the model at once."""

    max_events: Annotated[StrictInt, Field(ge=1, le=100_000)] = Field(4096, description="Maximum events per batch.")
    max_wait: Annotated[Duration, Field(ge=0)] = Field(
        0.0, description="How long to wait for a fuller batch; 0ms takes the events that are available."
    )


class Device(Section):
    """`device`: where the model runs."""

    device: Annotated[Literal["auto", "cpu", "cuda"], BeforeValidator(lower)] = Field(
        "auto", description="`cuda`: an NVIDIA GPU. `auto`: the faster of the GPU and the CPU, measured at start."
    )
    threads: Annotated[StrictInt, Field(ge=1, le=256)] = Field(
        1, description="Threads per model step; more processes scale better than more threads."
    )


class Http(Section):
    """`http`: metrics, health and the live page."""

    host: SingleLine = Field(
        "127.0.0.1", description="Address to listen on; 0.0.0.0 listens on every IPv4 address, as a container needs."
    )
    port: Annotated[StrictInt, Field(ge=0, le=65535)] = Field(
        9108, description="Port to listen on; 0 takes any free port."
    )
    token: Token | None = Field(
        None,
        description="Bearer token for `/live` and the page's figures, and for `/state`, which there is only with a"
        " token. Without one, alerts on the page have keys and fields only where `http.host` is a loopback address.",
    )
    stall_after: Annotated[Duration, Field(gt=0)] = Field(
        30.0,
        description="`/livez` returns 503 once the loop has made no progress for this long; `/readyz` also once input"
        " has waited for this long without a committed batch.",
    )

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in {"localhost", "::1"} or self.host.startswith("127.")


class Tracing(Section):
    """`tracing`: spans of OpenTelemetry (extra `otel`)."""

    endpoint: HttpUrl | None = Field(
        None,
        description="Where a span per committed batch goes, by OTLP over HTTP, such as http://collector:4318/v1/traces."
        " It links to the traces of the records (header `traceparent`). Default: none are made.",
    )


class Config(Document):
    """The configuration of `lstmstream run`. Durations are float seconds, sizes int bytes."""

    placeholders: ClassVar[Mapping[Keys, str]] = _PLACEHOLDERS

    name: Name = Field(description="Consumer group, and prefix of the daemon's own topics.")
    model: ModelReference = Field(
        description="Model file, relative to this file's folder, or builtin:NAME; builtin:anomaly:FIELD,FIELD needs no"
        " training."
    )
    model_sha256: Sha256 | None = Field(
        None, description="SHA-256 of the model file; a file with another one is refused."
    )
    delivery: Literal["exactly_once", "at_least_once"] = Field(
        "exactly_once",
        description="`at_least_once`: lower latency; a batch that is done again, after a crash for example, is"
        " published again.",
    )
    on_model_change: Literal["fail", "reset", "replay"] = Field(
        "fail",
        description="When the model, or a setting that decides what a state means, has changed: stop, start with fresh"
        " states, or rebuild the states from the input (`state.replay`).",
    )
    create_topics: bool = Field(default=True, description="Create missing topics that the daemon owns.")
    shutdown_timeout: Annotated[Duration, Field(gt=0)] = Field(
        30.0, description="Maximum time of a clean shutdown; after that the process exits with code 1."
    )
    log: Log
    kafka: Kafka
    input: Input
    output: Output
    alerts: Alerts
    dead_letter: DeadLetters
    state: State
    batch: Batch
    device: Device
    http: Http
    tracing: Tracing

    def conflicts(self) -> Iterable[Conflict]:
        """Find options that are valid by themselves and cannot be used together. Reads the certificate files."""
        return daemon_conflicts(self)

    @model_validator(mode="before")
    @classmethod
    def _default_topics(cls, data: object) -> object:
        """Name the daemon's own topics after `name` where they are not set. Runs before the sections are validated."""
        if not isinstance(data, dict):
            return data
        try:
            prefix = group_name(data["name"])
        except (KeyError, TypeError, ValueError):
            return data  # reported when `name` itself is validated
        filled = dict(data)
        for section in ("dead_letter", "state"):
            keys = {} if data.get(section) is None else data[section]
            if isinstance(keys, dict) and keys.get("topic") is None:
                filled[section] = {**keys, "topic": f"{prefix}.{section.replace('_', '-')}"}
        return filled
