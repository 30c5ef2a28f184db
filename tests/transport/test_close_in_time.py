"""Clients that do not close: a stop with no time left does not wait for each of them."""

from __future__ import annotations

import threading
import time

import pytest

from lstmstream.errors import TryAgain
from lstmstream.transport.decisions import ErrorKind
from tests.transport.test_protocol import batch, commit, connected


def test_a_stop_that_has_no_time_left_waits_for_no_client_to_close(caplog: pytest.LogCaptureFixture) -> None:
    """Each would take its seconds beside those of the shutdown. The last close of all has a limit of its own."""
    client, transport = connected()
    reader = transport.open_reader("in", 0, 2, 7)
    open_it = threading.Event()
    for call in ("close-reader", "close-consumer"):
        client.faults[call] = lambda: open_it.wait(30)
    client.fail("tx-flush", ErrorKind.TRANSIENT)
    with pytest.raises(TryAgain):
        commit(transport, [batch("out")])
    client.fail("poll", ErrorKind.CONSUMER_BROKEN)
    with pytest.raises(TryAgain):
        transport.poll(0.0, 1)
    transport.bound_calls(0.0)
    reader.close()
    with pytest.raises(TryAgain):
        transport._join(time.monotonic() + 5)
    assert "did not close" not in caplog.text
    open_it.set()
    client.take()
    transport.close(2.0)
    assert "abort" in client.take()
