"""`lstmstream completion SHELL`: the script that it prints has the shell complete commands, options and values."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_cli import lstmstream

ASK = """
eval "$(lstmstream completion bash)"
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_lstmstream_completion lstmstream
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A folder with the program by its name."""
    script = tmp_path / "lstmstream"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lstmstream "$@"\n')
    script.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sco"], {"score"}),
        (["score", "--sh"], {"--shard"}),
        (["dead-letter", ""], {"list", "show", "replay"}),
        (["config", ""], {"schema"}),
        (["completion", ""], {"bash", "zsh", "fish"}),
        (["score", "./stream"], {""}),  # nothing of ours, so that bash completes file names
    ],
)
def test_bash(program: Path, words: list[str], expected: set[str]) -> None:
    assert shutil.which("bash") is not None
    done = subprocess.run(
        ["bash", "-c", ASK, "bash", "lstmstream", *words],
        env={"PATH": f"{program}:/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert (done.stderr, set(done.stdout.splitlines())) == ("", expected)


@pytest.mark.parametrize(
    ("shell", "starts"), [("zsh", "#compdef lstmstream"), ("fish", "complete --command lstmstream")]
)
def test_other_shells(shell: str, starts: str) -> None:
    done = lstmstream("completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(starts)
    words = {"_LSTMSTREAM_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": "lstmstream dead-letter "}
    answer = lstmstream(**words, _TYPER_COMPLETE_FISH_ACTION="get-args")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert all(name in answer.stdout for name in ("list", "show", "replay"))


def test_a_shell_that_it_does_not_know_is_exit_2() -> None:
    done = lstmstream("completion", "tcsh")
    assert done.returncode == 2
    assert "'bash', 'zsh', 'fish'" in done.stderr
