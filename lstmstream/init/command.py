"""`lstmstream init`: reads a sample of the topic, and writes stream.yaml and train.yaml."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lstmstream.config import Config
from lstmstream.config.diagnostics import validate
from lstmstream.errors import BadRecord, CannotServe
from lstmstream.formats.json_documents import Document, parse_document
from lstmstream.init.fields import Proposal, profiles, propose
from lstmstream.model.channels import MAX_CHANNELS
from lstmstream.records import RecordBatch
from lstmstream.serve.factory import open_reader
from lstmstream.transport.kafka_admin import open_kafka_admin
from lstmstream.transport.patient_broker import connected
from lstmstream.transport.schema_registry import read_patiently
from lstmstream.whole_file import remedy_of, whole_file
from lstmstream.wording import counted

LIMIT_S = 20.0  # a broker may take so long to answer
KEYED = 0.99  # this share of the records with a key makes it the key


class Wire(NamedTuple):
    """How the events are written."""

    record_format: str = "json"
    unwrap: str | None = None
    schema_registry: str | None = None  # its address

    def kafka(self, servers: Sequence[str]) -> dict[str, Any]:
        """The section `kafka` of a configuration."""
        registry = {} if self.schema_registry is None else {"schema_registry": {"url": self.schema_registry}}
        return {"bootstrap_servers": list(servers), **registry}

    def options(self) -> dict[str, str]:
        """`format` and `unwrap`, where they are not the default."""
        unwrap = {} if self.unwrap is None else {"unwrap": self.unwrap}
        return ({} if self.record_format == "json" else {"format": self.record_format}) | unwrap


def init(
    folder: Path,
    *,
    topic: str,
    servers: Sequence[str],
    name: str | None,
    records: int,
    force: bool,
    wire: Wire = Wire(),  # noqa: B008 - immutable
    as_json: bool = False,
) -> int:
    """Write the two files into `folder`. Raises CannotServe.

    `as_json`: what was found is printed as JSON.
    """
    if folder.exists() and not folder.is_dir():
        raise CannotServe(f"{folder}: is a file; give the folder that stream.yaml and train.yaml are written to")
    stream, train = folder / "stream.yaml", folder / "train.yaml"
    for file in (stream, train):
        if file.exists() and not force:
            raise CannotServe(f"{file}: is there already; give another folder, or --force to write over it")
    name = name or topic
    sample = read_sample(topic, servers, name, records, wire)
    documents, bad = _documents(sample)
    if not documents:
        raise CannotServe(f"topic {topic!r}: none of its newest {counted(len(sample), 'record')} is a JSON object")
    keyed = sum(key is not None for key in sample.keys) >= KEYED * len(sample)
    found = propose(profiles(documents), len(documents), keyed=keyed)
    if not _watched(found):
        raise CannotServe(
            f"topic {topic!r}: no field of its newest {counted(len(documents), 'event')} is a number to watch"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(stream) as one, whole_file(train) as other:
            one.write(stream_yaml(found, name=name, topic=topic, servers=servers, wire=wire).encode())
            other.write(train_yaml(found, name=name, topic=topic, servers=servers, wire=wire).encode())
    except OSError as error:
        why = f"cannot be written ({error.strerror}){remedy_of(error)}"
        raise CannotServe(f"{error.filename or folder}: {why}") from error
    if as_json:
        looked_at = {"events": len(documents), "not_json": bad}
        print(json.dumps(looked_at | asdict(found) | {"files": [str(stream), str(train)]}, ensure_ascii=False))
    else:
        _report(found, len(documents), bad, stream, train)
    return 0


def read_sample(topic: str, servers: Sequence[str], name: str, records: int, wire: Wire) -> RecordBatch:
    """The newest records of the topic, with JSON objects as values. Raises CannotServe."""
    tree = {
        "name": name,
        "model": "builtin:demo",
        "kafka": wire.kafka(servers),
        "input": {"topic": topic, **wire.options()},
        "output": {"topic": f"{name}.predictions"},
    }
    config = validate(Config, tree, Path.cwd())
    reader = open_reader(config)
    kafka = open_kafka_admin(config)
    with connected(kafka, f"topic {topic!r} cannot be read", limit_s=LIMIT_S) as broker:
        described = broker.describe([topic])
        if topic not in described:
            raise CannotServe(f"topic {topic!r} does not exist; correct the name, or create it and write some events")
        sample = broker.newest(topic, described[topic].partitions, records)
    if not len(sample):
        raise CannotServe(f"topic {topic!r} has no records to look at; write some events first")
    return read_patiently(reader, sample, LIMIT_S)


def stream_yaml(found: Proposal, *, name: str, topic: str, servers: Sequence[str], wire: Wire = Wire()) -> str:  # noqa: B008
    """A daemon's configuration: the detector that needs no training, over the numbers."""
    numbers = _watched(found)
    key = f"key: {_flow(found.key)}" if found.key else "# no key: the record's is taken"
    time = f"timestamp: {_flow(found.timestamp)}" if found.timestamp else "# no timestamp: the record's is taken"
    include = _flow([*numbers[:3], *found.categories[:2]])
    written = "".join(f"  {option}: {value}\n" for option, value in wire.options().items())
    return f"""\
# Made by `lstmstream init` from real records of the topic: check each line. All options: docs/reference.md
name: {_flow(name)}        # the consumer group, and the prefix of the daemon's own topics
# It learns each key's ways as events come. A model of your own: lstmstream train train.yaml
model: {_flow("builtin:anomaly:" + ",".join(numbers))}
kafka: {_flow(wire.kafka(servers))}
input:
  topic: {_flow(topic)}
{written}  {key}
  {time}
output:
  topic: {_flow(f"{name}.predictions")}
  alerts_topic: {_flow(f"{name}.alerts")}
  include: {include}      # fields of the event that its prediction has too
"""


def train_yaml(found: Proposal, *, name: str, topic: str, servers: Sequence[str], wire: Wire = Wire()) -> str:  # noqa: B008
    """A training configuration for the same events, read from the topic."""
    categories = f"  categories: {_flow(found.categories)}\n" if found.categories else ""
    if found.label is None:
        task, target = "anomaly", "# target: {field: …}      # a label, if there is one: the evaluation then uses it"
    else:
        task, target = "classify", f"target: {{field: {_flow(found.label)}}}"
    data = {"from": "kafka", "topic": topic, **wire.options()}
    data |= {option: value for option, value in (("key", found.key), ("timestamp", found.timestamp)) if value}
    return f"""\
# Made by `lstmstream init` from real records of the topic: check each line. A guide: docs/training.md
name: {_flow(name)}
task: {task}
data: {_flow(data)}
kafka: {_flow(wire.kafka(servers))}
features:
  numbers: {_flow(found.numbers)}   # {{name: …, log: true}} for amounts and counts
{categories}  elapsed: true
{target}
split: {{by: time, validation: 0.15, test: 0.15}}
"""


def _watched(found: Proposal) -> list[str]:
    """The numbers for `builtin:anomaly`."""
    return [name for name in found.numbers if _can_be_watched(name)][:MAX_CHANNELS]


def _can_be_watched(name: str) -> bool:
    """Whether `builtin:anomaly:NAME,NAME` can name it: a comma ends a name, and spaces around one are left out."""
    return "," not in name and name == name.strip() and "\0" not in name


def _documents(sample: RecordBatch) -> tuple[list[Document], int]:
    """The events that are JSON objects, and how many records are none."""
    documents = []
    for value in sample.values:
        try:
            documents.append(parse_document(value))
        except BadRecord:
            continue
    return documents, len(sample) - len(documents)


def _report(found: Proposal, events: int, bad: int, stream: Path, train: Path) -> None:
    print(
        f"{counted(events, 'event was', 'events were')} looked at"
        + (f"; {counted(bad, 'more record is not a JSON object', 'more records are not JSON objects')}" if bad else "")
    )
    print(f"key         {found.key or 'that of the record'}")
    print(f"timestamp   {found.timestamp or 'that of the record'}")
    lists = {"numbers": found.numbers, "categories": found.categories, "left out": found.others}
    lists["label"] = [] if found.label is None else [found.label]
    for title in ("numbers", "categories", "label", "left out"):
        if lists[title]:
            print(f"{title:<11} {', '.join(map(_shown, lists[title]))}")
    for name, reason in found.reasons.items():
        print(f"{_shown(name)} is left out: {reason}")
    for name in found.numbers:
        if not _can_be_watched(name):
            what = "its comma would end the name" if "," in name else "the spaces around it would be left out"
            print(f"{_shown(name)} is in train.yaml only: {what} in builtin:anomaly:")
    for name, count in found.texts.items():
        print(f"{name} is text in {count:,} of them: such events become dead letters")
    print(f"\n{stream} and {train} are written. Now: lstmstream check {stream}", file=sys.stderr)


def _shown(name: str) -> str:
    return name if name and name == name.strip() and name.isprintable() else repr(name)


def _flow(value: Any) -> str:
    """YAML on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=1_000_000)
    return text.removesuffix("\n").removesuffix("\n...")
