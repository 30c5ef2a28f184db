"""`--profile`: sampled stacks in speedscope's format, and a table of the time per event and stage."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import orjson
import pytest
import yaml

from lstmstream.errors import CannotServe
from lstmstream.serve import stack_sampler, thread_cpu
from lstmstream.serve.profile import Profile, Totals, table
from lstmstream.serve.stack_sampler import StackSampler
from lstmstream.serve.thread_cpu import ThreadCpu
from tests.speedscope import check_speedscope, seconds_in

ROUNDS = 40


def profile_of(sampler: StackSampler) -> dict[str, Any]:
    """As it is read again from a file."""
    read: dict[str, Any] = json.loads(orjson.dumps(sampler.speedscope("test")))
    return read


def burn(seconds: float) -> float:
    began_s = time.perf_counter()
    while time.perf_counter() - began_s < seconds:
        pass
    return time.perf_counter() - began_s


def burn_long() -> float:
    return burn(0.06)


def burn_short() -> float:
    return burn(0.02)


# -- stacks


def test_a_function_that_burns_time_has_its_share() -> None:
    spent_s = {"burn_long": 0.0, "burn_short": 0.0}

    def work() -> None:
        for _ in range(ROUNDS):
            spent_s["burn_long"] += burn_long()
            spent_s["burn_short"] += burn_short()

    sampler = StackSampler()
    sampler.start()
    thread = threading.Thread(target=work, name="worker")
    thread.start()
    thread.join()
    sampler.stop()
    profile = profile_of(sampler)
    check_speedscope(profile)
    found_s = seconds_in(profile, "worker")
    for function, seconds in spent_s.items():
        share = seconds / sum(spent_s.values())
        assert found_s[function] / (found_s["burn_long"] + found_s["burn_short"]) == pytest.approx(share, abs=0.15)
    # A sample may fall between the two, and on a busy machine it stands for as long as the sampler had to wait.
    assert found_s["burn"] == pytest.approx(found_s["burn_long"] + found_s["burn_short"], rel=0.1)


def test_each_thread_has_a_profile_but_the_sampler_has_none() -> None:
    sampler, ending = StackSampler(), threading.Event()
    waiting = threading.Thread(target=ending.wait, name="waits")
    waiting.start()
    sampler.start()
    while not {"MainThread", "waits"} <= {one["name"] for one in sampler.speedscope("test")["profiles"]}:
        time.sleep(0.01)
    sampler.stop()
    ending.set()
    waiting.join()
    profile = profile_of(sampler)
    check_speedscope(profile)
    assert "lstmstream-profile" not in {one["name"] for one in profile["profiles"]}
    assert profile["profiles"][profile["activeProfileIndex"]]["name"] == "MainThread"
    assert not any(thread.name == "lstmstream-profile" for thread in threading.enumerate())


def frame_here() -> FrameType:
    return sys._getframe()


def test_equal_stacks_are_one_sample_with_their_time_together() -> None:
    sampler = StackSampler()
    for seconds in (0.25, 0.5):
        sampler.add(1, "t", frame_here(), seconds)
    profile = profile_of(sampler)
    (one,) = profile["profiles"]
    assert one["weights"] == [0.75]
    frames = [profile["shared"]["frames"][number] for number in one["samples"][0]]
    code = frame_here.__code__
    assert frames[-1] == {"name": "frame_here", "file": code.co_filename, "line": code.co_firstlineno}
    assert frames[-2]["name"] == "test_equal_stacks_are_one_sample_with_their_time_together"


def made_function(number: int) -> FrameType:
    """A frame of a function that no other has."""
    names: dict[str, Any] = {"sys": sys}
    exec(f"def made_{number}(): return sys._getframe()", names)
    frame: FrameType = names[f"made_{number}"]()
    return frame


def test_what_is_kept_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack_sampler, "MAX_STACKS", 10)
    monkeypatch.setattr(stack_sampler, "MAX_THREADS", 3)
    sampler = StackSampler()
    for number in range(100):
        sampler.add(number % 7, f"thread {number % 7}", made_function(number), 1.0)
    profile = profile_of(sampler)
    check_speedscope(profile)
    assert len(profile["shared"]["frames"]) == 10
    assert {one["name"] for one in profile["profiles"]} == {"thread 0", "thread 1", "thread 2", "(other threads)"}
    assert sum(len(one["samples"]) for one in profile["profiles"]) <= 10 + 4
    assert sum(one["endValue"] for one in profile["profiles"]) == 100, "no time is lost"


def recurse(depth: int) -> FrameType:
    return frame_here() if depth == 0 else recurse(depth - 1)


def test_so_have_the_stacks_of_a_few_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack_sampler, "MAX_STACKS", 100)
    sampler = StackSampler()
    for depth in range(120):
        sampler.add(1, "t", recurse(depth % 60), 1.0)
    assert len(sampler.speedscope("test")["profiles"][0]["samples"]) == 60
    monkeypatch.setattr(stack_sampler, "MAX_STACKS", 60)
    for depth in range(60, 100):
        sampler.add(1, "t", recurse(depth), 1.0)
    (one,) = profile_of(sampler)["profiles"]
    assert len(one["samples"]) == 61
    assert sorted(one["weights"])[-1] == 40, "the others together"
    assert one["endValue"] == 160


def test_of_a_deep_recursion_the_innermost_frames_are_kept() -> None:
    sampler = StackSampler()
    sampler.add(1, "t", recurse(500), 1.0)
    profile = profile_of(sampler)
    (stack,) = profile["profiles"][0]["samples"]
    assert len(stack) == stack_sampler.MAX_DEPTH
    assert profile["shared"]["frames"][stack[-1]]["name"] == "frame_here"


# -- CPU time


def test_cpu_time_of_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, burnt, ending = ThreadCpu(), threading.Event(), threading.Event()
    cpu.look()

    def work() -> None:
        while time.thread_time() < 0.2:
            pass
        burnt.set()
        ending.wait()

    thread = threading.Thread(target=work, name="burns")
    thread.start()
    burnt.wait()
    cpu.look()
    ending.set()
    thread.join()
    cpu.look()
    assert cpu.by_name()["burns"] == pytest.approx(0.2, abs=0.05)

    monkeypatch.setattr(thread_cpu, "_TASKS", Path("/no/such/place"))
    other = ThreadCpu()
    other.look()
    assert other.by_name() == {}


# -- the table


def test_the_table() -> None:
    lines = table(
        Totals(2_000_000, 500, {"poll": 1.0, "step": 6.0}), 10.0, 9.0, {"MainThread": 8.5, "rdk:main (native)": 0.01}
    )
    assert lines == [
        "2,000,000 events in 10.0 s and 500 batches",
        "4,000.0 events per batch",
        "4.50 CPU seconds per million events",
        "stage       us per event  us per batch  of the time",
        "poll                0.50         2,000       10.0 %",
        "step                3.00        12,000       60.0 %",
        "the rest            1.50         6,000       30.0 %",
        "CPU of thread                                      s    of a core",
        "MainThread                                      8.50       85.0 %",
    ]


def test_the_table_of_nothing() -> None:
    lines = table(Totals(0, 0, {"step": 0.0}), 0.0, 0.0, {})
    assert lines[1] == "- events per batch"
    assert lines[4].split() == ["step", "-", "-", "-", "%"]


# -- the file


def test_a_file_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(CannotServe, match=r"--profile .*/no/p.json: cannot be written \(No such file or directory\)"):
        Profile(tmp_path / "no" / "p.json", "test")
    with pytest.raises(CannotServe, match="Is a directory"):
        Profile(tmp_path, "test")


def test_a_file_that_is_something_else_is_not_overwritten(tmp_path: Path) -> None:
    other = tmp_path / "stream.yaml"
    other.write_text("name: payments")
    with pytest.raises(CannotServe, match="exists and is not a profile"):
        Profile(other, "test")
    assert other.read_text() == "name: payments"


def test_a_profile_is_written_over_an_earlier_one(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    for title in ("a first run, with a longer name", "second"):
        said: list[str] = []
        profile = Profile(file, title)
        profile.start()
        profile.finish(Totals(0, 0, {}), said.append)
        read = json.loads(file.read_bytes())
        check_speedscope(read)
        assert read["name"] == title
        assert said[-1] == f"the profile was written to {file}; open it at https://www.speedscope.app"


def test_a_profile_that_never_began_writes_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    Profile(tmp_path / "p.json", "test").finish(Totals(0, 0, {}), said.append)
    assert (tmp_path / "p.json").read_bytes() == b""
    assert said == []


def test_a_file_that_fails_at_the_end_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    profile = Profile(Path("/dev/full"), "test")
    profile.start()
    profile.finish(Totals(0, 0, {}), said.append)
    assert said[-1] == "the profile could not be written to /dev/full: No space left on device"


# -- the commands


def lstmstream(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lstmstream", *arguments], capture_output=True, text=True, check=False, timeout=300
    )


def test_score_has_the_same_predictions_and_a_profile(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    line = '{"customer":"c%d","time":%d,"amount":1,"distance_km":1,"merchant":"fuel","entry":"chip"}\n'
    events.write_text("".join(line % (i % 99, i) for i in range(60_000)))
    plain = lstmstream("score", "builtin:demo", str(events))
    file = tmp_path / "p.json"
    profiled = lstmstream("score", "builtin:demo", str(events), "--profile", str(file))
    assert (plain.returncode, profiled.returncode) == (0, 0)
    assert profiled.stdout == plain.stdout
    said = profiled.stderr.splitlines()
    assert any(one.startswith("lstmstream: 60,000 events in ") for one in said)
    assert [one.split()[1] for one in said if one.endswith("%")][:5] == ["decode", "gather", "step", "stage", "encode"]
    profile = json.loads(file.read_bytes())
    check_speedscope(profile)
    assert seconds_in(profile, "MainThread")["Engine.process"] > 0


def test_score_does_not_write_the_profile_over_other_files(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    events.write_text("{}\n")
    same = str(tmp_path / "same")
    done = lstmstream("score", "builtin:demo", str(events), "--out", same, "--profile", same)
    assert done.returncode == 2
    assert f"--profile {same}: is also the file of --out" in done.stderr
    done = lstmstream("score", "builtin:demo", str(events), "--profile", str(events))
    assert done.returncode == 2
    assert "--profile" in done.stderr
    assert events.read_text() == "{}\n"


def test_run_refuses_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    settings = {
        "name": "n",
        "model": "builtin:demo",
        "kafka": {"bootstrap_servers": "127.0.0.1:1"},
        "input": {"topic": "in"},
        "output": {"topic": "out"},
        "http": {"port": 0},
    }
    config.write_text(yaml.safe_dump(settings))
    done = lstmstream("run", str(config), "--profile", str(tmp_path / "no" / "p.json"))
    assert done.returncode == 2
    assert "no/p.json: cannot be written (No such file or directory)" in done.stderr
