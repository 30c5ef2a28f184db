"""The options of `lstmstream verify` and what it prints, without a broker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lstmstream.errors import CannotServe, TryAgain
from lstmstream.transport import patient_broker
from lstmstream.verify import command
from lstmstream.verify.command import verify
from lstmstream.verify.run import Verification
from tests.models import random_model
from tests.verify.world import INPUT, OUTPUT, VerifyTransport, VerifyWorld, events, fill


class Opened(VerifyTransport):
    """As the command opens and closes it."""

    def close(self, timeout_s: float) -> None:
        """Nothing is open."""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VerifyWorld:
    """A daemon has answered; the command finds its broker."""
    made = VerifyWorld(random_model(tmp_path))
    fill(made, events(60, bad=0.2))
    made.serve()
    config = made.config()
    monkeypatch.setattr(command, "load_config", lambda _path, stage=None: config)
    monkeypatch.setattr(command, "open_kafka_admin", lambda _config: Opened(made.broker, INPUT))
    return made


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample": "0%"}, "--sample 0%: is not a share of the keys"),
        ({"sample": "150%"}, "--sample 150%"),
        ({"sample": "many"}, "--sample many"),
        ({"since": "yesterday"}, "--from yesterday: is neither an offset nor an ISO 8601 time"),
        ({"until": "-5:"}, "--to -5:"),
        ({"until": "5", "follow": True}, "--follow and --to cannot be used together"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CannotServe, match=message):
        verify(Path("c.yaml"), **options)


def test_what_it_prints(world: VerifyWorld, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(Path("c.yaml")) == 0
    printed = capsys.readouterr().out
    assert "60 events: " in printed
    assert printed.endswith("Each event was answered once, with the right record.\n")
    lost = json.loads(world.log(OUTPUT, 0).pop(1).value or b"")["source"]["offset"]
    assert verify(Path("c.yaml")) == 1
    lines = capsys.readouterr().out.splitlines()
    assert f"missing: prediction of event [0]@{lost}: there is no prediction" in lines
    assert lines[-1] == "The output is not what the input gives."
    world.broker.truncate(INPUT, 0, before=lost + 1)
    assert verify(Path("c.yaml")) == 2
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("not judged: partition 0, among events ") for line in lines)
    assert verify(Path("c.yaml"), since="1000000") == 2
    assert capsys.readouterr().out.endswith("There is no event in this range.\n")


def test_json(world: VerifyWorld, capsys: pytest.CaptureFixture[str]) -> None:
    again = world.log(OUTPUT, 2)[0]
    world.broker.append(OUTPUT, 2, again.key, again.value, again.timestamp_ms, again.headers)
    assert verify(Path("c.yaml"), as_json=True, sample="50%") == 1
    summary = json.loads(capsys.readouterr().out)
    assert (summary["result"], summary["sample"], summary["counts"]["duplicate"]) == ("findings", 0.5, 1)
    (finding,) = summary["findings"]
    assert (finding["kind"], finding["topic"], finding["partition"]) == ("duplicate", OUTPUT, 2)


def test_follow_prints_each_finding_once(
    world: VerifyWorld, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "ROUND_S", 0.0)
    rounds = 0
    judge = Verification.round

    def counted(self: Verification) -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 2:
            again = world.log(OUTPUT, 2)[0]
            world.broker.append(OUTPUT, 2, again.key, again.value, again.timestamp_ms, again.headers)
        judge(self)

    monkeypatch.setattr(Verification, "round", counted)
    assert verify(Path("c.yaml"), as_json=True, follow=True, stopping=lambda: rounds == 4) == 1
    finding, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert finding["kind"] == "duplicate"
    assert summary["counts"]["duplicate"] == 1
    assert "findings" not in summary


class Outage:
    """A broker that fails for so many calls once it has answered others."""

    def __init__(self, *, after: int, calls: int) -> None:
        self.left, self.calls, self.failed = after, calls, 0
        self.over = False

    def __call__(self, point: str) -> None:
        if point == "connect":
            return
        if self.left:
            self.left -= 1
        elif self.failed < self.calls:
            self.failed += 1
            raise TryAgain("the broker is away")
        else:
            self.over = True


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time does not pass between two tries, and each failure is said."""
    monkeypatch.setattr(patient_broker, "RETRY_S", 0.0)
    monkeypatch.setattr(patient_broker, "SAID_AFTER_S", -1.0)
    monkeypatch.setattr(command, "ROUND_S", 0.0)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("calls", [1, 2, 7])
@pytest.mark.parametrize("follow", [False, True])
def test_a_broker_that_fails_for_a_while_is_waited_for(
    world: VerifyWorld, capsys: pytest.CaptureFixture[str], calls: int, follow: bool
) -> None:
    """Wherever it fails, nothing is read twice or left out."""
    most = 0
    for at in range(0, 60, 3):
        outage = Outage(after=at, calls=calls)
        world.broker.fault = outage
        assert verify(Path("c.yaml"), follow=follow, stopping=lambda: outage.over) == 0  # noqa: B023
        told = capsys.readouterr().err.splitlines()
        assert all("the broker" in line for line in told)
        assert len(told) % 2 == 0, "what is said of a failure is taken back"
        most = max(most, outage.failed)
    assert most == calls


@pytest.mark.usefixtures("hurried")
def test_a_broker_that_stays_away(
    world: VerifyWorld, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be judged what cannot be read. --follow waits until it is told to stop, and judges what it has read."""
    outage = Outage(after=100, calls=10**6)
    world.broker.fault = outage
    assert verify(Path("c.yaml"), follow=True, stopping=lambda: outage.failed > 100) == 0
    printed = capsys.readouterr()
    assert "60 events: " in printed.out
    assert printed.err.endswith("still trying: the broker is away\n")
    with pytest.raises(CannotServe, match="stopped before the end; nothing was judged"):
        verify(Path("c.yaml"), follow=True, stopping=lambda: True)
    monkeypatch.setattr(command, "LIMIT_S", 0.0)
    with pytest.raises(CannotServe, match="the topics cannot be read, for 0 s: the broker is away"):
        verify(Path("c.yaml"))
