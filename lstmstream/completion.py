"""Shell completion, by Typer's scripts and answers. They are in modules that Typer does not export.

Typer's own options for it would stand in every help text, and write to the user's files.
"""

from __future__ import annotations

import os

from typer._completion_classes import completion_init
from typer._completion_shared import get_completion_script

VARIABLE = "_LSTMSTREAM_COMPLETE"  # set by a shell that asks what may come next


def answer_shells() -> None:
    """Have the program answer a shell that asks, instead of running a command."""
    if VARIABLE in os.environ:
        completion_init()


def script(program: str, shell: str) -> str:
    """What bash, zsh or fish has to evaluate."""
    return get_completion_script(prog_name=program, complete_var=VARIABLE, shell=shell)
