"""`lstmstream ARGUMENT...` that writes states in small transactions: small_transactions.py BYTES ARGUMENT...

So faults strike between many of them.
"""

from __future__ import annotations

import sys

from lstmstream.cli import main
from lstmstream.states import seeding

if __name__ == "__main__":
    seeding.BYTES_PER_TRANSACTION = int(sys.argv.pop(1))
    sys.argv[0] = "lstmstream"
    main()
