"""Time limits for the calls of a client library: one thread for each client object.

Both libraries have calls without a limit of their own, or that overrun it. A call that has not returned in time is
left behind: its caller gets TryAgain and goes on. It must then do no harm:
- it holds the object that it was made for, never its successor;
- the object's other calls wait in line behind it, each within its own limit, so that two never run at once;
- a call whose limit passed while it waited in line is not made at all.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from lstmstream.errors import LstmstreamError, TryAgain

log = logging.getLogger(__name__)

_LONGEST_WAIT_S = 0.25  # before a new bound is seen

C = TypeVar("C")
T = TypeVar("T")


class _Call:
    """One call and its outcome."""

    __slots__ = ("abandoned", "error", "finished", "use", "value")

    def __init__(self, use: Callable[[], Any]) -> None:
        self.use = use
        self.value: Any = None
        self.error: BaseException | None = None
        self.finished = threading.Event()
        self.abandoned = False

    def run(self) -> None:
        if not self.abandoned:
            try:
                self.value = self.use()
            except BaseException as error:  # handed to the thread that waits
                self.error = error
        self.finished.set()


class CallBound:
    """A moment after which no call waits any longer, set when the process is asked to stop."""

    def __init__(self) -> None:
        self.deadline_s = math.inf  # of time.monotonic()
        self.on_wait: Callable[[], None] = lambda: None  # again and again while the daemon's thread waits for a call
        self._thread = threading.current_thread()  # the daemon's; another one commits in the background

    @property
    def stopping(self) -> bool:
        """Whether the moment has been set."""
        return self.deadline_s < math.inf

    @property
    def left_s(self) -> float:
        """Seconds until that moment."""
        return max(0.0, self.deadline_s - time.monotonic())

    def wait(self, finished: threading.Event, timeout_s: float) -> bool:
        """Whether it finished in time. The bound may come while this waits, from a signal handler on this thread."""
        deadline_s = time.monotonic() + timeout_s
        while not finished.is_set():
            left_s = min(deadline_s, self.deadline_s) - time.monotonic()
            if left_s <= 0:
                return False
            finished.wait(min(left_s, _LONGEST_WAIT_S))
            if threading.current_thread() is self._thread:
                self.on_wait()
        return True


class ClientThread(Generic[C]):
    """A client object on a thread of its own.

    `to_error` turns an error into the daemon's; None for one that is not the library's, which is raised as it is.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], C],
        to_error: Callable[[BaseException], LstmstreamError | None],
        bound: CallBound,
    ) -> None:
        self._name = name
        self._make = make
        self._to_error = to_error
        self._bound = bound
        self._object: C | None = None
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._overdue: _Call | None = None
        self._thread = threading.Thread(target=self._run, name=f"lstmstream-{name}", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls,
        name: str,
        make: Callable[[], C],
        to_error: Callable[[BaseException], LstmstreamError | None],
        bound: CallBound,
        *,
        close: Callable[[C], None],
        timeout_s: float,
    ) -> ClientThread[C]:
        """Make the object. One that comes too late is closed where it is. Raises as `call` does."""
        opened = cls(name, make, to_error, bound)
        try:
            opened._wait(_Call(opened._create), timeout_s)
        except BaseException:
            opened.end(close, timeout_s=0.0)
            raise
        return opened

    def call(self, use: Callable[[C], T], timeout_s: float) -> T:
        """`use(object)`. Raises TryAgain where it has not returned in time, else what the error means."""
        client = self._object
        assert client is not None
        value: T = self._wait(_Call(lambda: use(client)), timeout_s)
        return value

    @property
    def stuck(self) -> bool:
        """Whether a call that was left behind is still running."""
        return self._overdue is not None and not self._overdue.finished.is_set()

    def interrupt(self, use: Callable[[C], None]) -> None:
        """`use(object)` beside the call that is running: for what ends that call. Never raises."""
        if self._object is not None:
            self._quietly(use, self._object)

    def end(self, close: Callable[[C], None], timeout_s: float) -> None:
        """Close the object once its calls have returned, wait for it so long, and end the thread. Never raises.

        While the process stops, it is waited for no longer than for a call.
        """

        def close_it() -> None:
            if self._object is not None:
                self._quietly(close, self._object)
                self._object = None  # librdkafka's objects end with their last reference: here, not with the caller

        last = _Call(close_it)
        self._calls.put(last)
        self._calls.put(None)
        timeout_s = min(timeout_s, self._bound.left_s)
        if timeout_s > 0 and not self._bound.wait(last.finished, timeout_s):
            log.warning("a Kafka client did not close within %.3g s", timeout_s, extra={"client": self._name})

    def _create(self) -> None:
        self._object = self._make()

    def _wait(self, call: _Call, timeout_s: float) -> Any:
        self._calls.put(call)
        if not self._bound.wait(call.finished, timeout_s):
            call.abandoned = True
            if not self.stuck:
                self._overdue = call
            raise TryAgain(f"the broker did not answer within {timeout_s:.3g} s (Kafka client: {self._name})")
        failure, call.error = call.error, None
        if failure is None:
            return call.value
        error = self._to_error(failure)
        try:
            if error is None:
                raise failure
            raise error from failure
        finally:  # or the traceback would keep itself, and with it the client and what the call was given
            del failure, error

    def _quietly(self, use: Callable[[C], None], client: C) -> None:
        try:
            use(client)
        except Exception as error:  # whatever it is, there is nothing left to be done with this client
            log.warning("a Kafka client did not close cleanly: %s", error, extra={"client": self._name})

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call.run()
