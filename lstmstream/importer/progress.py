"""Shows what an import is doing once it takes longer than a few seconds, on standard error."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.status import Status
from rich.text import Text

_SILENT_S = 2.0  # a short import shows nothing
_LINE_INTERVAL_S = 5.0  # between lines where there is no terminal


class ImportProgress:
    """A spinner with the present stage on a terminal, elsewhere a line every few seconds."""

    def __init__(self, file: object, *, silent_s: float = _SILENT_S, interval_s: float = _LINE_INTERVAL_S) -> None:
        self._file = str(file)
        self._silent_s, self._interval_s = silent_s, interval_s
        self._stage = "reads the file"
        self._started = time.monotonic()
        self._done = threading.Event()
        self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._thread = threading.Thread(target=self._show, name="import-progress", daemon=True)

    def stage(self, text: str) -> None:
        """What is done from now on, for the user."""
        self._stage = text

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _text(self) -> str:
        return f"import {self._file}: {self._stage} ({time.monotonic() - self._started:.0f} s)"

    def _show(self) -> None:
        if self._done.wait(self._silent_s):
            return
        if not self._console.is_terminal:
            while True:
                self._console.print(Text(self._text()))
                if self._done.wait(self._interval_s):
                    return
        with Status(Text(self._text()), console=self._console) as status:
            while not self._done.wait(0.2):
                status.update(Text(self._text()))
