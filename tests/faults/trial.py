"""A stream under load with all that judges it: what every fault test has in common."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from tests.broker.harness import RunningDaemon, end_offsets, read_all
from tests.faults.fleet import with_model
from tests.faults.judge import OffsetsWatch, OnlineReaders, aborted_records, open_transactions, source_of, verify
from tests.faults.load import Load, make_model, make_stream

STALL_S = 120.0  # without one more event answered, once nothing strikes any more


class Trial:
    """Topics, configuration, load and readers. `servers` is where the judges find the broker, whatever strikes it."""

    def __init__(
        self,
        servers: str,
        name: str,
        folder: Path,
        *,
        partitions: int,
        rate: float,
        seed: int,
        models: int = 1,
        **sections: Any,
    ) -> None:
        """`models`: how many versions answer in turn; the configuration begins with the first."""
        self.servers, self.name, self.partitions = servers, name, partitions
        self.config = make_stream(servers, name, folder, partitions=partitions, **sections)
        self.models = [make_model(folder, version) for version in range(1, models + 1)]
        self.load = Load(servers, f"{name}.in", partitions=partitions, rate=rate, seed=seed)
        self.watch = OffsetsWatch(servers, name, f"{name}.in", partitions=partitions)
        self._readers: OnlineReaders | None = None
        self._closing = contextlib.ExitStack()
        self.summaries: list[dict[str, Any]] = []  # of each model

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    @property
    def readers(self) -> OnlineReaders:
        """Once it has begun."""
        assert self._readers is not None, "the trial has not begun"
        return self._readers

    def begin(self) -> None:
        """Load and judges, once a daemon has been ready: it has made the topics that are its own."""
        self._readers = OnlineReaders(self.servers, self.name, partitions=self.partitions)
        for judge in (self._readers, self.watch, self.load):
            self._closing.enter_context(judge)  # the load ends first

    def ends(self) -> dict[int, int]:
        """The end of the input now."""
        return end_offsets(self.servers, f"{self.name}.in", partitions=self.partitions)

    def answered(self, ends: dict[int, int]) -> bool:
        """Whether the group has come so far."""
        offsets = self.watch.offsets
        return all(offsets.get(partition, 0) >= end for partition, end in ends.items())

    def wait_answered(self, daemon: RunningDaemon, what: str) -> None:
        """Until something new was written, and all that then stands in the input is answered."""
        written = self.load.written
        daemon.wait(lambda: self.load.written > written, f"given an event after {what}", STALL_S)
        ends = self.ends()
        daemon.wait(lambda: self.answered(ends), f"past {what}", STALL_S)

    def settle(self, wait: Callable[[Callable[[], bool], str], None]) -> None:
        """No more load; `wait` until all of it is answered, and was seen by the readers."""
        self.readers.load_ended()
        self.load.finish()
        ends = self.ends()
        wait(lambda: self.answered(ends), "all answered")
        wait(lambda: self.readers.events() >= sum(ends.values()), "all read by those who read all the while")

    def judge(self) -> list[str]:
        """All that is wrong. The daemons have stopped."""
        self._closing.close()
        findings = []
        for number, model in enumerate(self.models):
            code, summary = verify(with_model(self.config, model, to=self.config.with_name(f"verify-{number}.yaml")))
            self.summaries.append(summary)
            if code not in ({0} if len(self.models) == 1 else {0, 2}):
                findings.append(f"verify ends with {code}: {summary['counts']}, {summary['unjudged']}")
                findings += [str(finding) for finding in summary["findings"][:20]]
        # A verification leaves out what other models have answered: each prediction was judged by just one of them.
        judged = [
            summary["predictions"] - summary["not_judged"] + self._letters_left_out(summary)
            for summary in self.summaries
        ]
        if sum(judged) != self.summary["predictions"]:
            findings.append(f"of {self.summary['predictions']} predictions {judged} were judged")
        findings += [*self.readers.duplicates, *self.readers.differences(), *self.watch.fallen]
        opened = open_transactions(self.servers, self.name, partitions=self.partitions)
        findings += [f"{topic} has an open transaction at the end" for topic in opened]
        if not self.watch.looks:
            findings.append("the group's offsets could not be looked at once")
        return findings

    def _letters_left_out(self, summary: dict[str, Any]) -> int:
        """Dead letters among what was not judged: of events before those that the model's states begin with."""
        stretches = [one for one in summary["unjudged"] if not one["reason"].startswith("answered by model ")]
        if not stretches:
            return 0
        letters = read_all(self.servers, f"{self.name}.dead-letter", partitions=self.partitions)
        sources = [source_of(letter) for letter in letters]
        return sum(
            one["partition"] == partition and one["from"] <= offset < one["to"]
            for one in stretches
            for partition, offset in sources
        )

    @property
    def summary(self) -> dict[str, Any]:
        """That of the first model's verification, once it was judged."""
        return self.summaries[0]

    def aborted(self) -> int:
        """Records that no read_committed reader is shown."""
        return aborted_records(self.servers, f"{self.name}.out", partitions=self.partitions)
