"""What tests of events and predictions in other formats share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lstmstream.transport import schema_registry
from tests.registry import Registry


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """A schema registry; no time passes between two questions."""
    monkeypatch.setattr(schema_registry, "PAUSES_S", ())
    with Registry() as running:
        yield running
