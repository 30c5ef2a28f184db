"""What a program has loaded is not searched for garbage again, and new garbage is found."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc
from lstmstream.serve.garbage import search_new_objects_only

class Client:
    gone = 0
    def __init__(self):
        self.itself = self
    def __del__(self):
        Client.gone += 1

old = [Client()]
search_new_objects_only()
print(any(one is old for one in gc.get_objects()), gc.get_freeze_count() > 1000)
for _ in range(2_000):
    Client()
print(Client.gone > 0)
"""


def test_what_is_loaded_is_not_searched_and_cycles_are_found() -> None:
    found = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "True", "True"]
