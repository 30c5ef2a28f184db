"""The command line: exit codes and messages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def lstmstream(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lstmstream", *arguments], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("command", ["check", "verify", "state", "dead-letter"])
def test_a_command_that_is_not_implemented_says_so(command: str) -> None:
    done = lstmstream(command, "x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"lstmstream: `lstmstream {command}` is not implemented yet\n"


def test_workers_are_refused(tmp_path: Path) -> None:
    done = lstmstream("run", str(tmp_path / "c.yaml"), "--workers", "2")
    assert done.returncode == 2
    assert "--workers is not implemented yet" in done.stderr


@pytest.mark.parametrize("arguments", [["nonsense"], ["run"], ["score", "x"], ["demo", "--events", "0"]])
def test_a_mistake_on_the_command_line_is_one_sentence(arguments: list[str]) -> None:
    done = lstmstream(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("lstmstream: ")
    assert "Traceback" not in done.stderr


def test_a_missing_config_is_one_sentence() -> None:
    done = lstmstream("run", "nowhere.yaml")
    assert done.returncode == 2
    assert "nowhere.yaml" in done.stderr
    assert "Traceback" not in done.stderr


def test_inspect_shows_the_shipped_model() -> None:
    card = json.loads(lstmstream("model", "inspect", "builtin:demo", "--json").stdout)
    assert card["format"] == 1
    assert Path(card["path"]).is_absolute()
    assert len(card["sha256"]) == 64
    text = lstmstream("model", "inspect", "builtin:demo")
    assert text.returncode == 0
    assert card["fingerprint"] in text.stdout


def test_an_output_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    events.write_text('{"customer":"a","time":1,"amount":1,"distance_km":1,"merchant":"fuel","entry":"chip"}\n' * 3)
    nowhere = lstmstream("score", "builtin:demo", str(events), "--out", str(tmp_path / "no" / "where"))
    assert (nowhere.returncode, nowhere.stderr) == (1, f"lstmstream: {tmp_path}/no/where: No such file or directory\n")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "lstmstream", "score", "builtin:demo", str(events)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (1, "lstmstream: -: No space left on device\n")


def test_version() -> None:
    assert lstmstream("--version").stdout.startswith("lstmstream ")
