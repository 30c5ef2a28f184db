"""`lstmstream run` that stalls once at a named point of a transaction: stalling_daemon.py HOW POINT COUNT CONFIG.

HOW is `freeze`, all of it by SIGSTOP until somebody wakes it, or the seconds that the thread sleeps at least, and until
the file CONFIG.wakes is there, while the client's own threads go on, as they do while a model takes too long. The file
CONFIG.stalls appears as it begins.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from lstmstream.cli import main
from tests.broker import dying_daemon


def stall_once(how: str, config: Path) -> None:
    """In place of the end that `dying_daemon` would come to."""
    mark = config.with_suffix(".stalls")
    if mark.exists():
        return
    mark.touch()
    if how == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
        return
    time.sleep(float(how))
    while not config.with_suffix(".wakes").exists():
        time.sleep(0.1)


if __name__ == "__main__":
    how, point, count, config = sys.argv[1:]
    dying_daemon.die = lambda: stall_once(how, Path(config))
    dying_daemon.arrange(point, int(count))
    sys.argv = ["lstmstream", "run", config]
    main()
