"""What to do where a broker turns down credentials that may be replaced while the daemon runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from lstmstream.errors import LstmstreamError, TryAgain
from lstmstream.transport.decisions import BadCredentials
from lstmstream.transport.security import SecuritySettings

PATIENCE_S = 300.0  # Kubernetes takes up to two minutes until a changed secret is in the files of a pod


class Credentials:
    """Whether files of `kafka.security` were replaced, and for how long a refusal may be the time between two secrets.

    At the start a refusal ends the process, as does one of credentials that stand in the configuration itself.
    """

    def __init__(self, security: SecuritySettings) -> None:
        self._security = security
        self._of_consumer = security.digest()  # when the consumer was made
        self._were_accepted = False
        self._refused_since_s: float | None = None

    def changed(self) -> bool:
        """Whether one of the files is another one than when the consumer was made."""
        return self._security.rotates and self._security.digest() != self._of_consumer

    def on_join(self) -> None:
        """A consumer is made now."""
        self._of_consumer = self._security.digest()

    def on_accepted(self) -> None:
        """The brokers let us in."""
        self._were_accepted, self._refused_since_s = True, None

    def judge(self, error: LstmstreamError) -> LstmstreamError:
        """TryAgain where the error is of credentials, and others may be on their way; else the error itself."""
        if not self._were_accepted or not self._security.rotates:
            return error
        now_s = time.monotonic()
        if self._refused_since_s is None:
            self._refused_since_s = now_s
        if now_s - self._refused_since_s > PATIENCE_S:
            return error
        return TryAgain(f"{error}. Its files are read again; this is tried for {PATIENCE_S:.0f} s")

    @contextmanager
    def patient(self) -> Iterator[None]:
        """A BadCredentials that comes out of it is judged."""
        try:
            yield
        except BadCredentials as error:
            raise self.judge(error) from error
