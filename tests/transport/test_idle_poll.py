"""A confluent consumer that gets nothing waits; it does not ask again and again."""

from __future__ import annotations

from typing import Any, cast

import pytest

from lstmstream.transport.clients import confluent_consumer


class SilentConsumer:
    """Waits for whole milliseconds, as the library does, on a clock of its own."""

    def __init__(self) -> None:
        self.now_s = 1_000.0007
        self.polls = 0

    def poll(self, timeout_s: float) -> None:
        self.polls += 1
        self.now_s += int(timeout_s * 1000) / 1000 + 2e-6

    def monotonic(self) -> float:
        self.now_s += 1e-7
        return self.now_s


@pytest.mark.parametrize("timeout_s", [0.0, 0.005, 0.0073, 0.1])
def test_an_idle_poll_asks_once_or_twice(timeout_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    consumer = SilentConsumer()
    monkeypatch.setattr(confluent_consumer, "time", consumer)
    began_s = consumer.now_s
    records, _, _ = confluent_consumer._consume(cast("Any", consumer), "in", timeout_s, 100)
    assert len(records) == 0
    assert consumer.polls <= 2
    assert timeout_s <= consumer.now_s - began_s < timeout_s + 0.003
