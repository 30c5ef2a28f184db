"""The garbage collector looks at the objects of batches seldom, and still finds cycles."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc
from lstmstream.serve.garbage import collect_seldom

class Client:
    gone = 0
    def __init__(self):
        self.itself = self
    def __del__(self):
        Client.gone += 1

collect_seldom()
assert gc.get_freeze_count() > 1000

def collections():
    return sum(one["collections"] for one in gc.get_stats())

before = collections()
for _ in range(10):
    batch = [(number,) for number in range(5_000)]  # the one before is still there
print(collections() - before)
for _ in range(30_000):
    Client()
print(Client.gone > 0)
"""


def test_a_batch_is_not_searched_and_cycles_are_found() -> None:
    found = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["0", "True"]
