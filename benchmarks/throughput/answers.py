"""Whether an app computes what all compute: its scores of a sample of keys, against one step at a time.

The expected scores come from the plain graph, run event by event. As every app is compared with the same scores to half
of the tolerance, any two apps agree to the tolerance.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime as ort

from benchmarks.throughput.apps import EXACTLY_ONCE
from benchmarks.throughput.topics import Topics
from benchmarks.throughput.workload import Event, Workload

TOLERANCE = 1e-5
FREQUENT_KEYS, OTHER_KEYS = 20, 400  # of the sample
EVENTS_PER_KEY = 200  # of the sample, the first ones
RECORDS = 100_000  # of an output, that are read for the check
CHECK_S = 20.0


@dataclass(slots=True)
class Check:
    """What was found in an app's output. `records_per_offset` is below 1 where transactions leave their markers."""

    compared: int = 0
    duplicates: int = 0
    worst_difference: float = 0.0
    records_per_offset: float = 1.0
    problems: list[str] = field(default_factory=list)


class Sample:
    """The first events of some keys, and the scores that they should get."""

    def __init__(self, workload: Workload) -> None:
        ranked = workload.ranked_keys()
        step = max(1, len(ranked) // OTHER_KEYS)
        self._events: dict[bytes, list[tuple[str, tuple[float, ...]]]] = {
            key: [] for key in [*ranked[:FREQUENT_KEYS], *ranked[::step]]
        }
        self._scores: dict[bytes, dict[str, float]] = {}

    def see(self, ts: bytes, event: Event) -> None:
        """Take the next event of the topic."""
        seen = self._events.get(event.key)
        if seen is not None and len(seen) < EVENTS_PER_KEY:
            seen.append((ts.decode(), event.numbers))

    def score(self, model: Path) -> None:
        """Compute the expected scores, each key's events one after the other."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        size = session.get_inputs()[1].shape[1]
        for key, events in self._events.items():
            state, scores = np.zeros((1, size), np.float32), {}
            for ts, numbers in events:
                inputs = {"x": np.array([numbers], np.float32), "state": state}
                state, score = session.run(["state_out", "score"], inputs)
                scores[ts] = float(score[0])
            self._scores[key] = scores

    def compare(self, key: bytes, values: list[bytes], guarantee: str, check: Check) -> None:
        """Judge the answers of one key, in the order of the output."""
        expected = self._scores.get(key)
        if expected is None:
            return
        due = list(expected.items())
        seen: set[str] = set()
        for value in values:
            ts, score = parse_answer(value)
            if ts in seen:
                check.duplicates += 1
                if guarantee == EXACTLY_ONCE:
                    check.problems.append(f"key {key!r}: the event of {ts} has two answers")
                continue
            if len(seen) == len(due):  # beyond the sample
                return
            if ts != due[len(seen)][0]:
                check.problems.append(f"key {key!r}: the answer to {due[len(seen)][0]} is missing, {ts} came")
                return
            seen.add(ts)
            difference = abs(score - expected[ts])
            check.compared += 1
            check.worst_difference = max(check.worst_difference, difference)
            if not difference <= TOLERANCE / 2:
                check.problems.append(f"key {key!r}: {ts} has the score {score} and should have {expected[ts]}")

    def has(self, key: bytes | None) -> bool:
        """Whether the key belongs to the sample."""
        return key in self._events


def check_output(topics: Topics, output: str, sample: Sample, guarantee: str) -> Check:
    """Read the beginning of an app's output as a read_committed reader does, and compare."""
    answers: defaultdict[bytes, list[bytes]] = defaultdict(list)
    offsets: dict[int, int] = {}
    records = 0
    for message in topics.read(output, RECORDS, CHECK_S):
        records += 1
        offsets[message.partition()] = message.offset() + 1
        if sample.has(message.key()):
            answers[message.key()].append(message.value())
    check = Check()
    for key, values in answers.items():
        sample.compare(key, values, guarantee, check)
    if not check.compared:
        check.problems.append(f"none of {records} records belongs to a key of the sample")
    if records:
        check.records_per_offset = records / sum(offsets.values())
    return check


def parse_answer(value: bytes) -> tuple[str, float]:
    """The event's time and the score; the daemon carries fields of the event under `event`."""
    answer = json.loads(value)
    return answer["ts"] if "ts" in answer else answer["event"]["ts"], answer["score"]
