"""What is looked at, one line each: a check that fails names the remedy. Nothing is written, and no group is joined."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Protocol

import numpy as np

from lstmstream import codec
from lstmstream.check.broker_limits import check_request_size, check_timeouts
from lstmstream.check.results import Check, failed, ok, warning
from lstmstream.check.state_owner import check_states
from lstmstream.config import Config, load_config
from lstmstream.config.types import start_ms
from lstmstream.errors import BadRecord, CannotServe, SchemaRegistryDown, TryAgain
from lstmstream.formats.field_names import listed, names_of, similar_name
from lstmstream.formats.json_documents import ABSENT, locate, parse_document
from lstmstream.formats.schemas import UnknownSchema
from lstmstream.formats.timestamps import format_iso
from lstmstream.logs import escape_untrusted, message_kind
from lstmstream.records import RecordBatch, partition_numbers
from lstmstream.serve.config_warnings import config_warnings
from lstmstream.serve.engine import Result
from lstmstream.serve.factory import load_step_model, make_engine, open_reader
from lstmstream.serve.identity import state_identity
from lstmstream.serve.model_checks import threshold_warning
from lstmstream.serve.step import OnnxStep
from lstmstream.serve.topic_settings import check_settings, roles
from lstmstream.serve.topics import owned_topics, partition_problems
from lstmstream.transport.partitioner import partitions_of
from lstmstream.transport.patient_broker import PatientBroker
from lstmstream.transport.ports import CommittedOffset, TopicInfo
from lstmstream.transport.schema_registry import RegistryClient
from lstmstream.wording import counted

RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml")  # one of them: they share a folder
CLOCK_MS = 60_000  # records may be so far in the future
REASONS = 3  # of dead letters
OWN_PARTITION = 0.99  # this share of the keyed records lies where murmur2 of the key says


class Kafka(Protocol):
    """As much of KafkaAdmin as is needed."""

    def connect(self) -> None:
        """Raises TryAgain, CannotServe."""


def check_packages() -> Iterator[Check]:
    """What is installed."""
    found = []
    for name in RUNTIMES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    if len(found) > 1:
        yield failed(
            "packages",
            f"{' and '.join(found)} are installed together, and each overwrites files of the other; uninstall all of"
            " them, then install one",
        )
    else:
        yield ok("packages", f"{', '.join(found)}; codec: {codec.describe()}")


def check_config(path: Path, stage: str | None) -> Iterator[Check | Config]:
    """The checks, then the configuration if it can be used."""
    try:
        config = load_config(path, stage=stage)
    except CannotServe as error:
        yield from (failed("configuration", problem) for problem in error.problems)
        return
    warnings = config_warnings(config)
    yield from (warning("configuration", text) for text in warnings)
    if not warnings:
        yield ok("configuration", f"{path} is valid; the daemon's name and group: {config.name}")
    yield config


def check_model(config: Config) -> Iterator[Check | OnnxStep]:
    """The checks, then the model if it can be used."""
    try:
        model, step = load_step_model(config)
    except CannotServe as error:
        yield from (failed("model", problem) for problem in error.problems)
        return
    card = model.card
    fields = listed([feature.name for feature in card.features])
    text = f"{card.name} {card.version} on {step.device}, a state of {4 * card.state.size:,} bytes per key"
    yield ok("model", f"{text}; it reads {fields}")
    threshold = config.output.threshold if config.output.threshold is not None else card.threshold
    if threshold is None:
        yield warning("model", "it has no threshold, so nothing is an alert; set output.threshold to have alerts")
    if doubt := threshold_warning(config, card):
        yield warning("model", doubt)
    yield step


class TopicChecks:
    """Everything that the broker is asked for."""

    def __init__(self, broker: PatientBroker, config: Config, step: OnnxStep | None, *, records: int) -> None:
        """`step`: None where the model cannot be used. `records`: how many are looked at."""
        self._broker, self._config, self._step = broker, config, step
        self._records = records
        self._found: dict[str, TopicInfo] = {}

    def run(self) -> Iterator[Check]:
        """All of them. Raises CannotServe where the broker stops answering."""
        config = self._config
        self._found = self._broker.describe([name for _, name in roles(config)])
        source = self._found.get(config.input.topic)
        settings = self._broker.broker_settings()
        yield from check_timeouts(config, settings)
        yield from self._topics(source)
        if source is None or not source.partitions:
            return
        yield from self._settings(source)
        yield from check_request_size(config, settings, source, self._state_floats)
        ranges = {number: self._broker.offset_range(config.input.topic, number) for number in range(source.partitions)}
        yield from self._offsets(ranges)
        states = self._found.get(config.state.topic)
        if self._step is not None and states is not None and states.partitions == source.partitions:
            ours = state_identity(config, self._step.card)
            yield from check_states(self._broker, config, ours, states.partitions)
        sample = self._broker.newest(config.input.topic, source.partitions, self._records)
        if not len(sample):
            yield warning("records", f"{config.input.topic} has no records to look at; check again once there are some")
            return
        yield from self._keys(sample, source.partitions)
        yield from self._times(sample)
        if self._step is not None:
            try:
                yield from self._events(sample, self._step)
            except SchemaRegistryDown as error:
                yield failed("schema registry", str(error))
            except CannotServe as error:  # a package is missing
                yield from (failed("records", problem) for problem in error.problems)

    @property
    def _state_floats(self) -> int | None:
        return None if self._step is None else self._step.card.state.size

    def _topics(self, source: TopicInfo | None) -> Iterator[Check]:
        config = self._config
        if source is None or not source.partitions:
            text = f"input.topic: topic {config.input.topic!r} does not exist; create it, or correct the name"
            yield failed("topics", text)
            return
        yield ok("topics", f"input.topic {config.input.topic}, partitions: {source.partitions}")
        missing = sorted(owned_topics(config) - self._found.keys())
        if missing and config.create_topics:
            yield ok("topics", f"the daemon creates {listed(missing)} at its start")
        elif missing:
            yield failed("topics", f"{listed(missing)} do not exist, and create_topics is false; create them")

    def _settings(self, source: TopicInfo) -> Iterator[Check]:
        problems = partition_problems(self._config, self._found, source)
        findings = check_settings(self._config, self._found, self._state_floats)
        yield from (failed("topic settings", text) for text in problems)
        yield from ((failed if finding.error else warning)("topic settings", finding.text) for finding in findings)
        if not problems and not findings:
            yield ok("topic settings", "retention, compaction, sizes, timestamps and replication are as they should be")

    def _offsets(self, ranges: dict[int, tuple[int, int]]) -> Iterator[Check]:
        config = self._config
        committed = self._broker.group_offsets(config.input.topic, list(ranges))
        if not committed:
            yield ok("group", f"{config.name} has no offsets yet: it starts at {_place(config)} (input.start)")
            return
        gone = {p: at for p, at in committed.items() if not ranges[p][0] <= at.offset <= ranges[p][1]}
        for number, at in gone.items():
            first, end = ranges[number]
            yield failed(
                "group",
                f"the group's offset of {config.input.topic}[{number}] is {at.offset}, and the topic has {first} to"
                f" {end}: events were deleted before they were answered, or the topic is another one",
            )
        if not gone:
            yield ok(
                "group", f"{config.name} is {counted(_lag(committed, ranges), 'record')} behind the end of the input"
            )

    def _keys(self, sample: RecordBatch, partitions: int) -> Iterator[Check]:
        keyed = np.array([key is not None for key in sample.keys])
        field = self._config.input.key
        if field is None and not keyed.all():
            count = int((~keyed).sum())
            yield failed(
                "keys",
                f"{count:,} of {len(sample):,} records without a key share one state per partition; give the records"
                " a key, or set input.key to a field",
            )
        if partitions == 1 or not keyed.any():
            return
        with_key = sample.take(np.flatnonzero(keyed))
        expected = np.array(partitions_of(_by_key(with_key), partitions))
        share = float(np.mean(expected == with_key.partitions))
        if share >= OWN_PARTITION:
            yield ok("keys", "the records lie in the partitions that Kafka's default partitioner gives their keys")
        else:
            yield from self._other_partitioner(with_key, share)

    def _other_partitioner(self, records: RecordBatch, share: float) -> Iterator[Check]:
        places: dict[bytes | None, set[int]] = {}
        for key, partition in zip(records.keys, records.partitions.tolist(), strict=True):
            places.setdefault(key, set()).add(partition)
        torn = [key for key, of in places.items() if len(of) > 1]
        if torn:
            yield failed(
                "keys",
                f"records of {len(torn):,} of {len(places):,} keys lie in several partitions, such as"
                f" {escape_untrusted(torn[0] or b'', 40)}: each partition has a state of its own for it. All producers"
                " must partition by the record key, with the same partitioner",
            )
        else:
            yield ok("keys", f"the producers use a partitioner of their own ({share:.0%} lie where murmur2 says)")

    def _times(self, sample: RecordBatch) -> Iterator[Check]:
        newest_ms, now_ms = int(sample.timestamps.max()), time.time() * 1000
        if newest_ms > now_ms + CLOCK_MS:
            yield warning(
                "clock",
                f"the newest record is {(newest_ms - now_ms) / 1000:,.0f} s in the future: the clock of this machine"
                " or of a producer is wrong",
            )
        else:
            yield ok("clock", "no record comes from the future")

    def _events(self, sample: RecordBatch, step: OnnxStep) -> Iterator[Check]:
        engine = make_engine(self._config, step, reader=open_reader(self._config))
        for number in partition_numbers(sample.partitions):
            engine.scorer.states.open(number)
        result = engine.process(sample)
        engine.rollback()
        letters = result.dead_letters
        total, alerts = len(sample), int(result.predictions.alert.sum())
        text = (
            f"{counted(total, 'record gives', 'records give')}"
            f" {counted(len(result.predictions.index), 'prediction')}, {alerts:,} of them alerts"
        )
        if not letters:
            yield ok("records", text)
        else:
            kinds = Counter(message_kind(letter.message) for letter in letters)
            first = {message_kind(letter.message): letter for letter in reversed(letters)}
            for kind, count in kinds.most_common(REASONS):
                letter = first[kind]
                place = f"{sample.topic}[{sample.partitions[letter.index]}]@{sample.offsets[letter.index]}"
                report = failed if count == total else warning
                hint = self._hint(sample.values[letter.index])
                yield report(
                    "records",
                    f"{count:,} of {total:,} {'becomes a dead letter' if count == 1 else 'become dead letters'}:"
                    f" {letter.message} (first: {place}){hint}",
                )
            yield ok("records", text) if len(letters) < total else failed("records", text)
        yield from self._fields(result, step)

    def _hint(self, value: bytes | None) -> str:
        """A field of this event that is named almost as the key or the timestamp, where it lacks one of them."""
        try:
            document = parse_document(value)
        except BadRecord:
            return ""
        absent = [
            name
            for name in (self._config.input.key, self._config.input.timestamp)
            if name is not None and locate(document, name) is ABSENT
        ]
        similar = [similar_name(name, names_of([document])) for name in absent]
        return next((f"; did you mean {name!r}?" for name in similar if name is not None), "")

    def _fields(self, result: Result, step: OnnxStep) -> Iterator[Check]:
        events = len(result.decoded.observations.index)
        if not events:
            return
        names = names_of(result.decoded.documents)
        missing = result.decoded.field_counts.missing
        carried = [*self._config.output.include, *filter(None, [self._config.output.key])]
        absent = [feature.name for place, feature in enumerate(step.card.features) if missing[place] == events]
        for name in absent:
            similar = similar_name(name, names)
            hint = f"; did you mean {similar!r}?" if similar is not None else f"; they have {listed(names)}"
            yield failed("fields", f"the model reads {name!r}, and none of {counted(events, 'event')} has it{hint}")
        unused = [name for name in carried if all(locate(d, name) is ABSENT for d in result.decoded.documents)]
        for name in unused:
            yield warning("fields", f"output.include or output.key names {name!r}, and none of the events has it")
        if not absent and not unused:
            yield ok("fields", "the events have all fields that the model and the configuration name")


def check_registry(config: Config) -> Iterator[Check]:
    """Whether it can be asked, where there is one."""
    registry = config.kafka.schema_registry
    if registry.url is None:
        return
    try:
        RegistryClient(registry, config.folder).check()
    except (SchemaRegistryDown, UnknownSchema) as error:
        yield failed("schema registry", str(error))
    else:
        yield ok("schema registry", f"{registry.url} can be reached")


def check_broker(kafka: Kafka, config: Config) -> Check:
    """Whether it can be reached."""
    servers = ", ".join(config.kafka.bootstrap_servers)
    try:
        kafka.connect()
    except (TryAgain, CannotServe) as error:
        return failed("broker", f"{servers}: {error}")
    return ok("broker", f"{servers} can be reached")


def _place(config: Config) -> str:
    """Where a group without offsets starts."""
    ends = {"earliest": "the beginning of the input", "latest": "the end of the input"}
    moment_ms = start_ms(config.input.start, time.time())
    if moment_ms is None:
        return ends[config.input.start]
    return f"the first record of {format_iso(moment_ms)} or later"


def _by_key(records: RecordBatch) -> RecordBatch:
    return RecordBatch.to_write(
        records.topic, np.full(len(records), -1), records.timestamps, records.keys, records.values
    )


def _lag(committed: dict[int, CommittedOffset], ranges: dict[int, tuple[int, int]]) -> int:
    return sum(ranges[number][1] - at.offset for number, at in committed.items())
