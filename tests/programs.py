"""Programs that some tests need and Python cannot install: where they are, and that only their absence is a skip."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

_GO_INSTALLS_HERE = Path.home() / "go" / "bin"


def find_program(*names: str, install: str) -> str:
    """The path of the first one that is there; skips the test on a machine that has none. `install`: how to get it."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), str(_GO_INSTALLS_HERE)])
    for name in names:
        if (found := shutil.which(name, path=path)) is not None:
            return found
    pytest.skip(f"no {' or '.join(names)} on this machine ({install})")
