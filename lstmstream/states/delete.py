"""`lstmstream state delete`: asks the owners of the partitions to erase keys, and waits until they have.

docs/erasure.md says how. It writes requests, and no state: only the owner knows where in the input it stands. Asking
again is harmless.
"""

from __future__ import annotations

import os
import sys
import time
from base64 import b64decode
from codecs import BOM_UTF8
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import orjson

from lstmstream.config import Config, load_config
from lstmstream.errors import CannotServe, OwnershipLost, TryAgain
from lstmstream.formats.durations import format_duration
from lstmstream.logs import escape_untrusted
from lstmstream.records import RecordBatch
from lstmstream.serve.erasure_records import (
    MAX_KEY_BYTES,
    MAX_KEYS,
    Applied,
    digest_of,
    pack_request,
    read_applied,
    request_name,
)
from lstmstream.serve.state_view import key_member
from lstmstream.states.command import say
from lstmstream.transport.kafka_admin import open_kafka_admin
from lstmstream.transport.patient_broker import LIMIT_S, PatientBroker, connected
from lstmstream.transport.ports import CALL_TIMEOUT_S, MemberInfo, TopicInfo
from lstmstream.wording import counted

LOOK_S = 0.5
MEMBERS_S = 5.0  # between looks at the group
SHOWN_KEYS = 20  # on the screen


class Writer(Protocol):
    """See transport/writer.py."""

    def transact(self, batches: list[RecordBatch], offsets: None, deadline: float) -> None:
        """One transaction."""

    def close(self, deadline: float) -> None:
        """Free it."""


class Kafka(Protocol):
    """As much of KafkaAdmin as is needed."""

    def open_writer(self, transactional_id: str, timeout_s: float) -> Any:
        """A Writer that fences those before it. Raises TryAgain, CannotServe, OwnershipLost."""

    def members_of(self, group: str, topic: str) -> Sequence[MemberInfo]:
        """The members of a group. Raises TryAgain, CannotServe."""


class Erased(NamedTuple):
    """What the owner of a partition has said of one key."""

    partition: int
    key: bytes
    offset: int  # of the input: the key's events before it are in no state
    found: bool  # whether the key had a state


def delete_states(
    config: Path,
    keys: Sequence[str],
    *,
    keys_from: Path | None,
    as_base64: bool,
    timeout_s: float,
    as_json: bool,
    stage: str | None,
) -> int:
    """Erase keys. 1 where one of them had no state, or no owner has confirmed in time; raises CannotServe."""
    wanted = read_keys(keys, keys_from, as_base64=as_base64)
    loaded = load_config(config, stage=stage)
    kafka = open_kafka_admin(loaded)
    with connected(kafka, "the keys cannot be erased", say=say) as broker:
        deletion = Deletion(kafka, broker, loaded, wanted)
        deletion.ask()
        idle = deletion.wait(timeout_s)
        topics = deletion.topics
    _print(deletion, idle=idle, timeout_s=timeout_s, as_json=as_json)
    _say_what_stays(loaded, topics)
    if idle:
        return 0
    return 1 if deletion.missing() or deletion.without_state() else 0


def read_keys(keys: Sequence[str], keys_from: Path | None, *, as_base64: bool) -> list[bytes]:
    """The keys that are meant, each once. Raises CannotServe."""
    found = [os.fsencode(key) for key in keys]
    if keys_from is not None:
        try:
            content = sys.stdin.buffer.read() if str(keys_from) == "-" else keys_from.read_bytes()
        except OSError as error:
            raise CannotServe(f"--keys-from {keys_from}: cannot be read ({error})") from error
        # Of bytes: in text there are more ends of lines, such as U+2028, and a key may have one.
        found += [line for line in content.removeprefix(BOM_UTF8).splitlines() if line]
    if not found:
        raise CannotServe("say which keys: KEY, or --keys-from FILE with one key a line")
    return list(dict.fromkeys(map(_from_base64, found) if as_base64 else found))


def _from_base64(text: bytes) -> bytes:
    try:
        return b64decode(text, validate=True)
    except ValueError as error:
        raise CannotServe(f"--base64: {os.fsdecode(text)!r} is not base64") from error


class Deletion:
    """The requests of one run, and what the owners have said."""

    def __init__(
        self, kafka: Kafka, broker: PatientBroker, config: Config, keys: Sequence[bytes], *, limit_s: float = LIMIT_S
    ) -> None:
        """Raises CannotServe where there is nothing to ask."""
        self._kafka, self._broker, self._config, self._keys = kafka, broker, config, keys
        self._limit_s = limit_s
        self._topic = config.state.topic
        self.topics = broker.describe([config.input.topic, self._topic, *_outputs(config)])
        for option, name in (("input.topic", config.input.topic), ("state.topic", self._topic)):
            if name not in self.topics:
                raise CannotServe(f"{option}: there is no topic {name!r}")
        self.partitions = self.topics[self._topic].partitions
        salt = self.topics[config.input.topic].topic_id
        self._by_digest = {digest_of(key, salt): key for key in keys}
        self._read_to = {p: broker.offset_range(self._topic, p)[1] for p in range(self.partitions)}
        self._requests: set[str] = set()
        self.erased: dict[tuple[int, bytes], Erased] = {}

    def ask(self) -> None:
        """Write the requests. Raises CannotServe."""
        give_up_s = time.monotonic() + self._limit_s
        chunks = _chunks(self._keys)
        while True:
            try:
                self._write(chunks)
            except (TryAgain, OwnershipLost) as error:  # OwnershipLost: another run has just begun
                if time.monotonic() > give_up_s:
                    raise CannotServe(f"nothing could be written to {self._topic!r}: {error}") from error
                time.sleep(LOOK_S)
            else:
                return

    def _write(self, chunks: list[Sequence[bytes]]) -> None:
        """What is written is taken out of `chunks`."""
        writer: Writer = self._kafka.open_writer(f"{self._config.name}.state-delete", CALL_TIMEOUT_S)
        try:
            while chunks:
                requests = [pack_request(chunks[0]) for _ in range(self.partitions)]
                self._requests |= {request_name(record_key) for record_key, _ in requests}
                batch = RecordBatch.to_write(
                    self._topic,
                    np.arange(self.partitions, dtype=np.int64),
                    np.full(self.partitions, int(time.time() * 1000), np.int64),
                    [record_key for record_key, _ in requests],
                    [value for _, value in requests],
                )
                writer.transact([batch], None, time.monotonic() + CALL_TIMEOUT_S)
                del chunks[0]
        finally:
            writer.close(time.monotonic() + CALL_TIMEOUT_S)

    def wait(self, timeout_s: float) -> bool:
        """Until all have confirmed, or for so long. Whether no member of the group is there to do it."""
        began_s = time.monotonic()
        next_members_s = began_s
        while self.missing():
            self._look()
            now_s = time.monotonic()
            if not self.missing():
                break
            if now_s >= next_members_s:
                next_members_s = now_s + MEMBERS_S
                if self._is_idle():
                    return True
            if now_s - began_s > timeout_s:
                break
            time.sleep(LOOK_S)
        return False

    def missing(self) -> list[int]:
        """The partitions whose owner has not confirmed all keys yet."""
        counts = dict.fromkeys(range(self.partitions), 0)
        for partition, _ in self.erased:
            counts[partition] += 1
        return [partition for partition, count in counts.items() if count < len(self._keys)]

    def without_state(self) -> list[bytes]:
        """The keys that had a state in no partition."""
        had = {one.key for one in self.erased.values() if one.found}
        return [key for key in self._keys if key not in had]

    def _look(self) -> None:
        for partition, end in self._broker.last_stable_offsets(self._topic, self.missing()).items():
            for records in self._broker.read(self._topic, partition, self._read_to[partition], end):
                self._take(partition, read_applied(records.keys, records.values))
            self._read_to[partition] = max(end, self._read_to[partition])

    def _take(self, partition: int, applied: Iterable[Applied]) -> None:
        for digest, offset, request, found in applied:
            key = self._by_digest.get(digest)
            if key is None or request not in self._requests:
                continue
            before = self.erased.get((partition, key))  # of a request whose fate was not known
            had_state = found or (before is not None and before.found)
            self.erased[partition, key] = Erased(partition, key, offset, had_state)

    def _is_idle(self) -> bool:
        try:
            return not self._kafka.members_of(self._config.name, self._config.input.topic)
        except TryAgain:
            return False


def _chunks(keys: Sequence[bytes]) -> list[Sequence[bytes]]:
    """Those of one request each: not too many, and not more bytes than a topic takes by default."""
    chunks: list[list[bytes]] = []
    size = 0
    for key in keys:
        size += len(key)
        if not chunks or len(chunks[-1]) == MAX_KEYS or size > MAX_KEY_BYTES:
            chunks.append([])
            size = len(key)
        chunks[-1].append(key)
    return [*chunks]


def _outputs(config: Config) -> list[str]:
    output = config.output
    topics = [output.topic, output.alerts_topic, output.events.topic, config.dead_letter.topic]
    return [topic for topic in topics if topic is not None]


def _print(deletion: Deletion, *, idle: bool, timeout_s: float, as_json: bool) -> None:
    missing, without = deletion.missing(), deletion.without_state()
    erased = sorted(deletion.erased.values())
    if as_json:
        body = {
            "confirmed": not missing,
            "members": not idle,
            "unconfirmed_partitions": missing,
            "keys_without_state": [] if missing else [key_member(key) for key in without],
            "erasures": [
                {**key_member(one.key), "partition": one.partition, "offset": one.offset, "found": one.found}
                for one in erased
            ],
        }
        print(orjson.dumps(body, option=orjson.OPT_INDENT_2).decode())
    else:
        for partition in range(deletion.partitions):
            offsets = [one.offset for one in erased if one.partition == partition]
            count = sum(one.found for one in erased if one.partition == partition)
            if offsets:
                span = f"{min(offsets)}" if min(offsets) == max(offsets) else f"{min(offsets)} to {max(offsets)}"
                print(f"partition {partition}  from input offset {span} on  {counted(count, 'state')} erased")
    if idle:
        say(
            "no member of the group is running: the keys are erased at the next start, before the first new event;"
            " their states are in the state topic until then"
        )
    elif missing:
        say(
            f"the owners of partitions {', '.join(map(str, missing))} have not confirmed it within"
            f" {format_duration(timeout_s)}. The request stands: it takes effect once their states are restored and"
            " they have read it"
        )
    elif without:
        shown = ", ".join(escape_untrusted(key) for key in without[:SHOWN_KEYS])
        more = f" and {len(without) - SHOWN_KEYS:,} more" if len(without) > SHOWN_KEYS else ""
        say(f"these keys had no state: {shown}{more}")


def _say_what_stays(config: Config, topics: Mapping[str, TopicInfo]) -> None:
    """This command erases states, and nothing else has been touched."""
    names = {"events": [config.input.topic], "what was published": _outputs(config)}
    for what, of_these in names.items():
        kept = ", ".join(f"{name} ({_kept(topics[name].settings)})" for name in of_these if name in topics)
        say(f"not erased: {what} in {kept}")
    if config.state.dir is not None:
        say(f"not erased: snapshots in {config.state.dir}, until newer ones have taken their place")
    say(f"not erased: copies outside of Kafka, and what {config.state.topic} keeps until it is compacted")


def _kept(settings: Mapping[str, str]) -> str:
    if "compact" in settings.get("cleanup.policy", ""):
        return "compacted"
    retention = settings.get("retention.ms")
    if retention is None:
        return "retention not known"
    return "kept for ever" if int(retention) < 0 else f"kept for {format_duration(int(retention) / 1000)}"
