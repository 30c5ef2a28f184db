"""`lstmstream state build`: runs the engine over a history that is older than the input, and writes the states.

Events go through the code that the daemon replays its input with, in the order of the files, each in the partition that
Kafka's partitioner takes for its key. Their offsets are those of no topic: -1 stands for them in what is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lstmstream.config import Config, load_config
from lstmstream.errors import CannotServe
from lstmstream.formats.csv_form import FROM_FILE, CsvOptions
from lstmstream.model import Model
from lstmstream.records import Bools, DeadLetter, Observations, RecordBatch
from lstmstream.row_progress import RowProgress
from lstmstream.serve.alert_memory import PartitionMemory, RulesFrom
from lstmstream.serve.alert_policy import AlertPolicy
from lstmstream.serve.engine import Engine
from lstmstream.serve.factory import alert_rules, load_step_model, make_engine, open_reader
from lstmstream.serve.score import BATCH_EVENTS
from lstmstream.serve.score_input import KeyAndTime, ScoreInput, with_key_and_time
from lstmstream.serve.state import Slab
from lstmstream.serve.state_records import pack_states
from lstmstream.serve.step_model import StepModel
from lstmstream.states.command import say
from lstmstream.states.import_states import NO_OFFSET, opened_seeding, say_joined
from lstmstream.states.joining import Join, JoinAt, find_joins, overlap
from lstmstream.states.seeding import Seeding, seed_offsets
from lstmstream.transport.partitioner import partitions_of_keys


def build_states(
    config: Path,
    history: Sequence[Path],
    *,
    key: str | None,
    timestamp: str | None,
    at: JoinAt,
    stage: str | None,
    csv: CsvOptions = FROM_FILE,
) -> int:
    """Build them and write them. Raises CannotServe."""
    loaded = load_config(config, stage=stage)
    model, step = load_step_model(loaded)
    reading = history_config(loaded, model, key, timestamp)
    with opened_seeding(loaded, model.card) as seeding:
        if reading.input.key is None and seeding.partitions > 1:
            raise CannotServe("the history's key is not known, and decides on its partition; give --key COLUMN")
        topic, engine = loaded.input.topic, make_engine(loaded, step, reader=open_reader(loaded))
        joins = find_joins(seeding.broker, topic, seeding.partitions, at, engine)
        built = HistoryRun(reading, step, joins)
        for file in history:
            built.read(file, csv)
        count = write_built(seeding, built, joins)
    say_joined(count, loaded, joins)
    return 0


def history_config(config: Config, model: Model, key: str | None, timestamp: str | None) -> Config:
    """The configuration for files, which have neither record keys nor record timestamps. Raises CannotServe."""
    for option, given, known in (("key", key, config.input.key), ("timestamp", timestamp, config.input.timestamp)):
        if None not in (given, known) and given != known:
            raise CannotServe(f"--{option} {given}: the config names another field, input.{option}: {known}")
    advice = ("give --key COLUMN", "give --timestamp COLUMN")
    reading = with_key_and_time(config, model, KeyAndTime(key, timestamp, no_key=False, advice=advice))
    if reading.input.timestamp is None:
        raise CannotServe("the time of the history's events is not known; give --timestamp COLUMN")
    # Which events are silent decides on alerts, and is the daemon's to say.
    return reading.model_copy(update={"input": reading.input.model_copy(update={"silent": config.input.silent})})


@dataclass(slots=True)
class _LeftOut:
    """Rows of a file that change no state."""

    count: int = 0
    first: str = ""

    def add(self, rows: ScoreInput, records: RecordBatch, letters: Sequence[DeadLetter]) -> None:
        """`letters`: of some of these records."""
        if letters and not self.count:
            first = min(letters, key=lambda letter: letter.index)
            self.first = f"{rows.place(int(records.offsets[first.index]))}: {first.message}"
        self.count += len(letters)


class HistoryRun:
    """The states that a history gives."""

    def __init__(self, config: Config, step: StepModel, joins: Mapping[int, Join]) -> None:
        """`config`: of `history_config`."""
        self._config, self._step, self._joins = config, step, joins
        self._engine: Engine = make_engine(config, step, from_file=True)
        rules = alert_rules(config, step.card)
        self._policy = None if rules is None else AlertPolicy(rules)
        self.rows = 0  # of all files so far
        for number in joins:
            self._engine.scorer.states.open(number)

    @property
    def slabs(self) -> Mapping[int, Slab]:
        """The states, by partition."""
        return self._engine.scorer.states.slabs

    def read(self, file: Path, csv: CsvOptions = FROM_FILE) -> None:
        """Run the events of one file. Raises CannotServe."""
        before, no_events, too_late = self.rows, _LeftOut(), _LeftOut()
        with (
            closing(ScoreInput(str(file), self._config, self._step.card, batch_events=BATCH_EVENTS, csv=csv)) as rows,
            closing(RowProgress(f"build {file.name}")) as progress,
        ):
            for note in rows.notes:
                say(note)
            for records in rows:
                for letters, left_out in zip(self._run(rows, records, before), (no_events, too_late), strict=True):
                    left_out.add(rows, records, letters)
                progress.update(rows.rows, rows.done)
            self.rows += rows.rows
        for left_out, why in ((no_events, "are no events"), (too_late, "are too late and change no state")):
            if left_out.count:
                say(f"{file}: {left_out.count:,} of {self.rows - before:,} rows {why}; the first: {left_out.first}")

    def _run(
        self, rows: ScoreInput, records: RecordBatch, before: int
    ) -> tuple[Sequence[DeadLetter], Sequence[DeadLetter]]:
        """`records`: a batch of `rows`; `before`: rows of earlier files. Rows that are no events, and too late ones."""
        decoded = self._engine.decode(records)
        found = decoded.observations
        partitions = partitions_of_keys(found.keys, len(self._joins))
        self._check_times(rows, replace(found, partitions=partitions))
        order = np.argsort(partitions, kind="stable")
        events = replace(found, partitions=partitions, offsets=found.offsets + before).take(order)
        silent: Bools = decoded.silent[order]
        too_late: list[DeadLetter] = []
        self._engine.scorer.replay(
            events, silent, self._policy, count_hours=True, evict=True, on_too_late=too_late.extend
        )
        for slab in self.slabs.values():  # the times before each batch are for floors, and there is none here
            slab.stream_time.begin(0, slab.stream_time.now_ms)
        return decoded.dead_letters, too_late

    def _check_times(self, rows: ScoreInput, found: Observations) -> None:
        for number, join in self._joins.items():
            if join.before_ms is None:
                continue
            late = np.flatnonzero((found.partitions == number) & (found.timestamps >= join.before_ms))
            if len(late):
                i = int(late[0])
                name = f"{rows.file.path}: {rows.place(int(found.offsets[i]))}"
                raise overlap(name, found.keys[i], number, int(found.timestamps[i]), join)

    def times_ms(self) -> dict[int, int]:
        """The stream time of each partition; NEVER where it has none, or without `input.max_lateness`."""
        return {number: slab.stream_time.now_ms for number, slab in self.slabs.items()}

    def alerts(self, partition: int) -> PartitionMemory | None:
        """What the policy remembers of a partition; None: there is no policy."""
        if self._policy is None:
            return None
        hours = [
            one._replace(first_offset=NO_OFFSET, last_offset=NO_OFFSET) for one in self.slabs[partition].alert_hours
        ]
        return PartitionMemory((RulesFrom(NO_OFFSET, self._policy.rules),), tuple(hours))


def write_built(seeding: Seeding, built: HistoryRun, joins: Mapping[int, Join]) -> int:
    """Write the states; how many. Raises CannotServe."""
    total = sum(map(len, built.slabs.values()))
    if not total:
        raise CannotServe("the history has no events, so there are no states to write")
    seeding.begin(joins)
    count, alerts = 0, {}
    with closing(RowProgress("writing states")) as progress:
        for number, slab in built.slabs.items():
            rows = slab.index.rows()
            if seeding.max_keys is None:
                slab.last_offset[rows] = NO_OFFSET
            else:  # which of them is seen least recently has to be known from then on
                order = np.argsort(slab.last_offset[rows])
                slab.last_offset[rows] = seed_offsets(np.zeros(len(rows), np.int64), order)
            for key, incident in list(slab.incidents.items()):
                slab.set_incident(key, incident._replace(offset=NO_OFFSET))
            for start in range(0, len(rows), seeding.rows_at_once):
                some = rows[start : start + seeding.rows_at_once]
                keys, values = pack_states(slab, some, seeding.identity.digest, seeding.origin)
                seeding.write(np.full(len(some), number, np.int64), keys, values)
                count += len(some)
                progress.update(count, count / total)
            if (memory := built.alerts(number)) is not None:
                alerts[number] = memory
        seeding.finish(alerts, built.times_ms())
    return count
