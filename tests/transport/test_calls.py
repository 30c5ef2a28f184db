"""Time limits of calls: what is left behind does no harm."""

from __future__ import annotations

import threading
import time

import pytest

from lstmstream.errors import Fatal, LstmstreamError, TryAgain
from lstmstream.transport.calls import CallBound, ClientThread
from tests.transport.hanging import LONG_S, count_from


class Library:
    """A client object: notes what is done with it, and by which thread."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.threads: set[int] = set()
        self.running = 0
        self.most_at_once = 0
        self.hanging = threading.Event()  # a call waits for its event

    def do(self, what: str, until: threading.Event | None = None) -> str:
        self.running += 1
        self.most_at_once = max(self.most_at_once, self.running)
        self.threads.add(threading.get_ident())
        if until is not None:
            self.hanging.set()
            assert until.wait(LONG_S)
        self.done.append(what)
        self.running -= 1
        return what

    def close(self) -> None:
        self.do("close")


def to_error(error: BaseException) -> LstmstreamError | None:
    return Fatal(f"meant: {error}") if isinstance(error, OSError) else None


def opened(library: Library) -> ClientThread[Library]:
    bound = CallBound()
    thread = ClientThread.open("test", lambda: library, to_error, bound, close=Library.close, timeout_s=LONG_S)
    count_from(bound, library.hanging)
    return thread


def test_calls_run_on_one_thread_that_is_not_the_callers() -> None:
    library = Library()
    thread = opened(library)
    assert [thread.call(lambda c, n=n: c.do(f"{n}"), LONG_S) for n in range(3)] == ["0", "1", "2"]
    thread.end(Library.close, LONG_S)
    assert library.done == ["0", "1", "2", "close"]
    assert len(library.threads) == 1
    assert threading.get_ident() not in library.threads


def test_errors_are_translated_and_ours_pass() -> None:
    thread = opened(Library())

    def fail(error: Exception) -> None:
        raise error

    with pytest.raises(Fatal, match="meant: lost") as raised:
        thread.call(lambda _: fail(OSError("lost")), LONG_S)
    assert isinstance(raised.value.__cause__, OSError)
    with pytest.raises(ZeroDivisionError):
        thread.call(lambda _: fail(ZeroDivisionError()), LONG_S)
    thread.end(Library.close, LONG_S)


def test_a_call_that_is_late_is_left_behind_and_the_next_waits_for_it() -> None:
    library = Library()
    thread = opened(library)
    go_on = threading.Event()
    with pytest.raises(TryAgain, match=r"did not answer within 0\.1 s"):
        thread.call(lambda c: c.do("late", until=go_on), 0.1)
    assert thread.stuck
    go_on.set()
    assert thread.call(lambda c: c.do("next"), LONG_S) == "next"
    assert not thread.stuck
    thread.end(Library.close, LONG_S)
    assert library.done == ["late", "next", "close"]
    assert library.most_at_once == 1


def test_a_call_whose_limit_passed_in_line_is_not_made() -> None:
    """A commit of offsets that nobody waits for any more must not happen later."""
    library = Library()
    thread = opened(library)
    go_on = threading.Event()
    with pytest.raises(TryAgain):
        thread.call(lambda c: c.do("late", until=go_on), 0.1)
    with pytest.raises(TryAgain):
        thread.call(lambda c: c.do("stale"), 0.1)
    go_on.set()
    thread.end(Library.close, LONG_S)
    assert library.done == ["late", "close"]


def test_an_object_that_comes_too_late_is_closed() -> None:
    library = Library()
    go_on = threading.Event()

    def make() -> Library:
        library.hanging.set()
        assert go_on.wait(LONG_S)
        return library

    bound = count_from(CallBound(), library.hanging)
    with pytest.raises(TryAgain):
        ClientThread.open("test", make, to_error, bound, close=Library.close, timeout_s=0.05)
    go_on.set()
    deadline = time.monotonic() + LONG_S
    while library.done != ["close"]:
        assert time.monotonic() < deadline


def test_an_object_that_cannot_be_made_is_said() -> None:
    def make() -> Library:
        raise OSError("nobody there")

    with pytest.raises(Fatal, match="nobody there"):
        ClientThread.open("test", make, to_error, CallBound(), close=Library.close, timeout_s=LONG_S)


def test_an_interrupt_does_not_wait_and_an_end_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    library = Library()
    thread = opened(library)
    go_on = threading.Event()
    with pytest.raises(TryAgain):
        thread.call(lambda c: c.do("late", until=go_on), 0.05)
    thread.interrupt(lambda c: c.done.append("interrupt"))
    assert library.done == ["interrupt"]

    def fail(_: Library) -> None:
        raise OSError("no")

    thread.end(fail, 0.1)
    assert "did not close within 0.1 s" in caplog.text
    go_on.set()
    deadline = time.monotonic() + LONG_S
    while "did not close cleanly: no" not in caplog.text:
        assert time.monotonic() < deadline


def test_a_bound_that_comes_while_a_call_waits_ends_the_wait() -> None:
    """As a signal handler sets it on the thread that waits: the call may take ten minutes, and the wait ends."""
    bound, library = CallBound(), Library()
    client = ClientThread.open("test", lambda: library, to_error, bound, close=Library.close, timeout_s=LONG_S)
    release = threading.Event()
    waiting = threading.Event()

    def hang(_: Library) -> None:
        waiting.set()
        assert release.wait(600)

    def stop() -> None:
        assert waiting.wait(LONG_S)
        bound.deadline_s = time.monotonic()

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(TryAgain, match="did not answer"):
        client.call(hang, 600)
    with pytest.raises(TryAgain):  # and no later call waits at all
        client.call(hang, 600)
    release.set()
    client.end(Library.close, LONG_S)
