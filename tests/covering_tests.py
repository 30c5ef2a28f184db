"""Which tests run each line of some files, and how long each of them takes: mutations.py asks no others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import coverage
import orjson
import pytest

NAMES = ("covering.sqlite", "seconds.json")


class _Recorder:
    """A plugin of pytest: names each test to coverage before its fixtures are made."""

    def __init__(self, measured: coverage.Coverage) -> None:
        self._measured = measured
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._measured.switch_context(_function(item.nodeid))
        return (yield)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[_function(report.nodeid)] += report.duration


def _function(node: str) -> str:
    """Of all its parameters, whose names may hold anything."""
    return node.partition("[")[0]


def record(folder: Path, files: Collection[str], arguments: Sequence[str]) -> int:
    """Run pytest with these arguments, and keep in `folder` which tests run the files' lines; pytest's exit code."""
    measured = coverage.Coverage(
        data_file=str(folder / NAMES[0]), config_file=False, include=[str(folder / file) for file in files]
    )
    recorder = _Recorder(measured)
    measured.start()
    try:
        return int(pytest.main([*arguments], plugins=[recorder]))
    finally:
        measured.stop()
        measured.save()
        (folder / NAMES[1]).write_bytes(orjson.dumps(recorder.seconds))


class CoveringTests:
    """What was recorded in a folder."""

    def __init__(self, folder: Path, files: Collection[str]) -> None:
        data = coverage.CoverageData(str(folder / NAMES[0]))
        data.read()
        self._by_line = {file: data.contexts_by_lineno(str(folder / file)) for file in files}
        self._seconds: dict[str, float] = orjson.loads((folder / NAMES[1]).read_bytes())

    def of(self, file: str, lines: Collection[int]) -> list[str]:
        """The tests that run one of the lines, the shortest first."""
        contexts = self._by_line.get(file, {})
        found = {name for line in lines for name in contexts.get(line, []) if name}
        return sorted(found, key=lambda name: self._seconds.get(name, 0.0))
