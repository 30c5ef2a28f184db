"""The public names and their signatures: a change here is a change for users, and belongs in the change log."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import lstmstream
from lstmstream import testing

SCORER = {
    "card": "property",
    "load": "(self, path: 'str | Path') -> 'None'",
    "open": "(model: 'str | Path', *, key: 'str | None' = None, timestamp: 'str | None' = None,"
    " threshold: 'float | None' = None, late: \"Literal['apply', 'score', 'drop']\" = 'apply',"
    " ttl: 'str | float | None' = None, device: \"Literal['auto', 'cpu', 'cuda']\" = 'auto', no_key: 'bool' = False,"
    " no_timestamp: 'bool' = False) -> 'Self'",
    "save": "(self, path: 'str | Path') -> 'None'",
    "score": "(self, rows: 'Any') -> 'Any'",
    "state": "(self, key: 'str | bytes | None') -> 'KeyState | None'",
}
TEST_DRIVER = {
    "advance": "(self, seconds: 'float') -> 'None'",
    "crash": "(self) -> 'None'",
    "crash_at": "(self, point: 'str') -> 'None'",
    "fail_next": "(self, point: 'str', times: 'int' = 1) -> 'None'",
    "metric": "(self, name: 'str', **labels: 'str') -> 'float'",
    "now": "property",
    "pipe": "(self, value: 'Mapping[str, Any] | bytes | None', key: 'str | bytes | None' = None, *,"
    " timestamp: 'datetime | int | None' = None, partition: 'int | None' = None,"
    " headers: 'Mapping[str, bytes | None] | None' = None) -> 'None'",
    "pipe_all": "(self, values: 'Iterable[Mapping[str, Any] | bytes | None]', key: 'str | bytes | None' = None)"
    " -> 'None'",
    "read_alerts": "(self) -> 'list[Output]'",
    "read_dead_letters": "(self) -> 'list[DeadLetter]'",
    "read_events": "(self) -> 'list[Output]'",
    "read_predictions": "(self) -> 'list[Output]'",
    "restart": "(self) -> 'None'",
    "run": "(self) -> 'None'",
    "running": "property",
    "state": "(self, key: 'str | bytes | None', partition: 'int | None' = None) -> 'KeyState | None'",
    "stop": "(self) -> 'int'",
}


def public(cls: type[Any]) -> dict[str, str]:
    found = {}
    for name in sorted(vars(cls)):
        if not name.startswith("_"):
            member = getattr(cls, name)
            found[name] = "property" if isinstance(member, property) else str(inspect.signature(member))
    return found


def test_the_names_of_the_package() -> None:
    assert lstmstream.__all__ == ["CannotServe", "KeyState", "Scorer", "__version__"]
    assert testing.__all__ == ["DeadLetter", "Output", "TestDriver"]
    for name in lstmstream.__all__:
        assert getattr(lstmstream, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Model'"):
        lstmstream.Model  # noqa: B018


def test_the_scorer() -> None:
    assert public(lstmstream.Scorer) == SCORER
    assert lstmstream.KeyState._fields == ("steps", "last_timestamp", "parts")


def test_the_test_driver() -> None:
    assert public(testing.TestDriver) == TEST_DRIVER
    assert str(inspect.signature(testing.TestDriver)).startswith(
        "(config: 'Config | Mapping[str, Any] | str | Path', *, partitions: 'int' = 1, start: 'datetime' ="
    )
    assert testing.Output._fields == ("key", "value", "timestamp_ms", "partition", "headers")
    assert testing.DeadLetter._fields == ("key", "value", "stage", "message", "partition", "offset", "headers")
