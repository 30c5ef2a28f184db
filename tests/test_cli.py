"""The command line: exit codes and messages."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lstmstream import __version__, codec

FULL = "lstmstream: standard output: No space left on device; free space on its disk, or write to another one\n"


def lstmstream(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lstmstream", *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )


@pytest.mark.parametrize("count", ["0", "-1", "257", "many"])
def test_a_number_of_workers_that_cannot_be(tmp_path: Path, count: str) -> None:
    done = lstmstream("run", str(tmp_path / "c.yaml"), "--workers", count)
    assert done.returncode == 2
    assert "--workers" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bad_configuration_is_said_once_for_all_workers(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("name: x\n")
    one, two = lstmstream("run", str(config)), lstmstream("run", str(config), "--workers", "2")
    assert (two.returncode, two.stderr) == (2, one.stderr)


def test_a_port_that_is_taken_starts_no_workers(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        write_daemon(config, port=taken.getsockname()[1])
        done = lstmstream("run", str(config), "--workers", "2")
    assert done.returncode == 2
    assert "http.port: cannot listen" in done.stderr
    assert "worker started" not in done.stderr


def test_a_model_that_is_missing_ends_all_workers_with_2(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    write_daemon(config, model="nowhere.onnx")
    done = lstmstream("run", str(config), "--workers", "2")
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 2, done.stderr
    assert {line.get("worker") for line in lines if "nowhere.onnx" in line["message"]} <= {0, 1}
    assert any("cannot serve (exit code 2" in line["message"] for line in lines)


def write_daemon(path: Path, *, model: str = "builtin:demo", port: int = 0) -> None:
    kafka = "kafka: {bootstrap_servers: '127.0.0.1:1'}\ninput: {topic: in}\noutput: {topic: out}\n"
    path.write_text(f"name: x\nmodel: {model}\n{kafka}http: {{port: {port}}}\n")


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
    said = f"lstmstream: --out {tmp_path}/no/where: No such file or directory; name another file\n"
    assert (nowhere.returncode, nowhere.stderr) == (2, said)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "lstmstream", "score", "builtin:demo", str(events)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=180,
        )
    assert (done.returncode, done.stderr) == (1, FULL)


@pytest.mark.parametrize("wanted", ["", "pure"])
def test_version_says_which_codec_is_used(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(codec.VARIABLE, wanted)
    first, second = lstmstream("--version").stdout.splitlines()
    assert first == f"lstmstream {__version__}"
    assert second == f"codec: {codec.describe()}"


def test_a_codec_that_is_not_known_is_exit_2() -> None:
    done = lstmstream("score", "builtin:demo", "-", **{codec.VARIABLE: "fast"})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("lstmstream: LSTMSTREAM_CODEC must be pure or compiled, not 'fast'")


@pytest.mark.parametrize("arguments", [["completion", "bash"], ["config", "schema"], ["--help"], ["model", "inspect"]])
def test_a_full_disk_behind_standard_output_is_one_sentence(arguments: list[str]) -> None:
    arguments = [*arguments, "builtin:demo"] if arguments == ["model", "inspect"] else arguments
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "lstmstream", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, FULL)


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    """`lstmstream model inspect builtin:demo | true`."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "lstmstream", "model", "inspect", "builtin:demo"],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "")


INTERRUPTED = """
import os, runpy, signal, sys

class Finder:
    def find_spec(self, name, *_):
        if name == "lstmstream.cli":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
sys.argv = ["lstmstream", "--version"]
runpy.run_module("lstmstream", run_name="__main__")
"""


@pytest.mark.parametrize(("ignored", "code"), [(False, -signal.SIGINT), (True, 0)])
def test_ctrl_c_while_modules_are_loaded_is_no_traceback(ignored: bool, code: int) -> None:
    """A shell lets programs in the background ignore it."""
    handler = "SIG_IGN" if ignored else "default_int_handler"  # whatever this process has inherited
    before = f"import signal; signal.signal(signal.SIGINT, signal.{handler})\n"
    done = subprocess.run(
        [sys.executable, "-c", before + INTERRUPTED], capture_output=True, text=True, check=False, timeout=180
    )
    assert (done.returncode, done.stderr) == (code, "")


def test_streams_that_are_closed(tmp_path: Path) -> None:
    """As by `2>&-` in a crontab: the result is there, and what cannot be written anywhere is refused."""
    events, out = tmp_path / "events.jsonl", tmp_path / "out.jsonl"
    events.write_text('{"customer":"a","time":1,"amount":1,"distance_km":1,"merchant":"fuel","entry":"chip"}\n' * 3)
    score = f"{sys.executable} -m lstmstream score builtin:demo {events}"

    def shell(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False, timeout=180)

    done = shell(f"{score} >&-")
    assert (done.returncode, done.stderr) == (2, "lstmstream: --out: standard output is closed; name a file\n")
    for closed in ("2>&-", ">&- 2>&-", "<&- >&- 2>&-"):
        out.unlink(missing_ok=True)
        assert shell(f"{score} --out {out} {closed}").returncode == 0
        assert out.read_text().count("\n") == 3
    done = shell(f"{sys.executable} -m lstmstream evaluate builtin:demo {events} --target entry 2>&-")
    assert done.returncode == 2
