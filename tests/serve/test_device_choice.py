"""`device.device: auto` takes what was faster, and measures only where there is a choice."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import pytest

from lstmstream.config import Config
from lstmstream.model import load_model
from lstmstream.serve import factory
from lstmstream.serve.device_choice import choose_step
from lstmstream.serve.step import OnnxStep
from tests.serve.helpers import DATA


@pytest.mark.parametrize(("cpu_s", "gpu_s", "taken"), [(0.5, 0.25, "GPU"), (0.25, 0.5, "CPU"), (0.5, 0.5, "CPU")])
def test_the_faster_one_is_taken_and_both_times_are_logged(
    cpu_s: float, gpu_s: float, taken: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    model = load_model(str(DATA / "small.onnx"))
    cpu, gpu = OnnxStep(model, device="cpu"), OnnxStep(model, device="cpu")
    times = iter([10.0, 10.0 + 4 * cpu_s, 20.0, 20.0 + 4 * gpu_s])
    chosen = choose_step(cpu, gpu, events=100, clock_s=lambda: next(times))
    assert chosen is (gpu if taken == "GPU" else cpu)
    (line,) = caplog.records
    assert line.getMessage() == (
        f"device.device is auto, and the {taken} is taken: 100 events take {cpu_s * 1e3:.1f} ms on the CPU"
        f" and {gpu_s * 1e3:.1f} ms on the GPU"
    )


class Opened:
    """An OnnxStep on a machine that has a GPU, or has none."""

    there: Iterable[str] = ()

    def __init__(self, _model: Any, *, device: str, threads: int, exact: bool) -> None:
        self.asked = (device, threads, exact)
        self.device = "cuda" if "cuda" in self.there and device != "cpu" else "cpu"


def opened(monkeypatch: pytest.MonkeyPatch, device: str, there: Iterable[str]) -> tuple[Any, list[Any]]:
    """What is served with, and between what was chosen."""
    choices: list[Any] = []

    def choose(cpu: Any, gpu: Any, *, events: int) -> Any:
        choices.append((cpu.device, gpu.device, events))
        return cpu

    monkeypatch.setattr(Opened, "there", there)
    monkeypatch.setattr(factory, "OnnxStep", Opened)
    monkeypatch.setattr(factory, "choose_step", choose)
    config = Config.model_validate(
        {
            "name": "n",
            "model": str(DATA / "small.onnx"),
            "kafka": {"bootstrap_servers": "nowhere:1"},
            "input": {"topic": "in"},
            "output": {"topic": "out"},
            "batch": {"max_events": 77},
            "device": {"device": device, "threads": 2},
        }
    )
    return factory.load_step_model(config)[1], choices


def test_it_is_measured_only_where_there_is_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    step, choices = opened(monkeypatch, "auto", ["cuda"])
    assert choices == [("cpu", "cuda", 77)]
    assert step.asked == ("cpu", 2, True)
    for device, there, found in (("auto", [], "cpu"), ("cuda", ["cuda"], "cuda"), ("cpu", ["cuda"], "cpu")):
        step, choices = opened(monkeypatch, device, there)
        assert (step.asked, step.device, choices) == ((device, 2, True), found, [])
