"""`lstmstream` with snapshots every second in place of every few minutes: arguments as those of the command."""

from __future__ import annotations

from lstmstream.cli import main
from lstmstream.serve import snapshots

if __name__ == "__main__":
    snapshots.LOOK_INTERVAL_S, snapshots.MAX_AGE_S = 1.0, 2.0
    main()
