"""`lstmstream run` whose transactions fail again and again: failing_daemon.py EVERY CONFIG.

Each EVERY-th transaction fails, at one of its calls after the other, so that its producers are thrown away.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

from lstmstream.cli import main
from lstmstream.errors import TryAgain
from tests.broker.dying_daemon import producers, wrap

POINTS = ("begin", "flush", "send_offsets", "commit")


def arrange(every: int) -> None:
    """Wrap the producers."""
    transactions, points = itertools.count(1), itertools.cycle(POINTS)
    failing = ""

    def on_begin(_: Any, *__: Any, **___: Any) -> None:
        nonlocal failing
        failing = next(points) if next(transactions) % every == 0 else ""

    def fail_at(point: str) -> Any:
        def fail(_: Any, *__: Any, **___: Any) -> None:
            if failing == point:
                raise TryAgain(f"a fault at {point}")

        return fail

    for producer in producers():
        for point in POINTS:
            wrap(producer, point, before=fail_at(point))
        wrap(producer, "begin", before=on_begin)  # runs before the fault at `begin`


if __name__ == "__main__":
    every, config = sys.argv[1:]
    arrange(int(every))
    sys.argv = ["lstmstream", "run", config]
    main()
