"""What a model must do before any event reaches it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper

from lstmstream.errors import CannotServe
from lstmstream.model import load_model
from lstmstream.serve.model_checks import same_values, warm_up
from lstmstream.serve.step import OnnxStep
from lstmstream.train.export import build
from tests.models import card_of, poisoned_model, random_network, write

SMALL = Path(__file__).parents[1] / "data" / "small.onnx"


def test_a_model_that_cannot_answer_one_event_alone_is_refused(tmp_path: Path) -> None:
    network = random_network(numbers=("a", "b"))
    proto = build(network)
    for node in proto.graph.node:
        for place, name in enumerate(node.input):
            if name == "x":
                node.input[place] = "squeezed"  # loses the rows' axis where there is one row
    proto.graph.node.insert(0, helper.make_node("Squeeze", ["x"], ["squeezed"]))
    path = write(tmp_path / "m.onnx", proto, card_of(network))
    with pytest.raises(CannotServe, match=r"m\.onnx: a trial step fails: "):
        OnnxStep(load_model(path), device="cpu")


def test_a_model_whose_rows_depend_on_each_other_is_refused(tmp_path: Path) -> None:
    """Its scores would depend on how events fall into batches. The first tensor that does is named."""
    network = random_network(numbers=("a", "b"))
    proto = build(network)
    for node in proto.graph.node:
        for place, name in enumerate(node.input):
            if name == "elapsed":
                node.input[place] = "centered"
    proto.graph.node.insert(0, helper.make_node("ReduceMax", ["elapsed"], ["longest"], keepdims=1))
    proto.graph.node.insert(1, helper.make_node("Sub", ["elapsed", "longest"], ["centered"]))
    path = write(tmp_path / "m.onnx", proto, card_of(network))
    with pytest.raises(CannotServe, match=r"m\.onnx: tensor '\w+' of a row changes with the rows beside it"):
        OnnxStep(load_model(path), device="cpu")
    OnnxStep(load_model(path), device="cpu", exact=False)


@pytest.mark.parametrize("size", [0.0, 1e6, -1e6])
@pytest.mark.parametrize("where", ["score", "state_out", "prediction"])
def test_a_model_is_tried_on_zeros_and_on_large_numbers(tmp_path: Path, where: Any, size: float) -> None:
    path = poisoned_model(tmp_path, where=where, magic=size)
    with pytest.raises(CannotServe, match=rf"its output for features of {re.escape(f'{size:g}')} is not finite"):
        warm_up(OnnxStep(load_model(path), device="cpu", exact=False))


class FallenBack(ort.InferenceSession):
    """A runtime that has CUDA and cannot load it: it says so on standard error, and takes the CPU."""

    printed = b"[E:onnxruntime] Failed to load library: libcublasLt.so.13: cannot open shared object file\n"

    def __init__(self, *given: Any, **named: Any) -> None:
        os.write(2, self.printed)
        super().__init__(*given, **named | {"providers": ["CPUExecutionProvider"]})


@pytest.fixture
def without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", FallenBack)


@pytest.mark.usefixtures("without_cuda")
def test_a_gpu_that_was_asked_for_and_not_got_is_exit_2() -> None:
    with pytest.raises(CannotServe, match=r"device\.device: cuda is set, but .*libcublasLt\.so\.13") as refused:
        OnnxStep(load_model(SMALL), device="cuda")
    assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("without_cuda")
def test_auto_falls_back_to_the_cpu_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert OnnxStep(load_model(SMALL), device="auto").device == "cpu"
    (warning,) = caplog.records
    assert "the model runs on the CPU" in warning.getMessage()
    assert "libcublasLt.so.13" in warning.getMessage()


@pytest.mark.usefixtures("without_cuda")
def test_of_what_the_runtime_prints_the_reason_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "\x1b[1;31m2026-11-28 04:39:13.0 [E:onnxruntime:Default, provider_bridge_ort.cc:2458 operator()] FAIL : Failed"
        " to load library /usr/lib/libonnxruntime_providers_cuda.so with error: libcuda.so.1: cannot open shared object"
        " file\n\x1b[m\n\x1b[0;93m2026-11-28 04:39:13.1 [W:onnxruntime:Default] Failed to create\x1b[m\n"
    )
    monkeypatch.setattr(FallenBack, "printed", text.encode())
    with pytest.raises(CannotServe, match=r"cannot use CUDA: libcuda\.so\.1: cannot open shared object file\. Install"):
        OnnxStep(load_model(SMALL), device="cuda")


@pytest.mark.usefixtures("without_cuda")
@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_a_gpu_that_cannot_be_opened(
    device: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """There is a driver, and no GPU for it: the runtime raises."""

    class Refused(ort.InferenceSession):
        def __init__(self, *given: Any, **named: Any) -> None:
            if named["providers"][0][0] == "CUDAExecutionProvider":
                raise RuntimeError("CUDA failure 100: no CUDA-capable device is detected")
            super().__init__(*given, **named)

    monkeypatch.setattr(ort, "InferenceSession", Refused)
    if device == "cuda":
        with pytest.raises(CannotServe, match=r"device\.device: cuda is set, but .*no CUDA-capable device"):
            OnnxStep(load_model(SMALL), device=device)
        return
    step = OnnxStep(load_model(SMALL), device=device)
    assert step.device == "cpu"
    assert step.open_session(step.model.content).get_providers() == ["CPUExecutionProvider"]
    (warning,) = caplog.records
    assert "no CUDA-capable device" in warning.getMessage()


@pytest.mark.usefixtures("without_cuda")
def test_the_libraries_that_pip_has_installed_are_loaded_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`score` writes predictions to standard output, where the runtime prints what it lacks."""
    order = []

    def preload() -> None:
        order.append("libraries")
        print("Failed to load libcublasLt.so.13")

    class Opened(FallenBack):
        def __init__(self, *given: Any, **named: Any) -> None:
            order.append("session")
            super().__init__(*given, **named)

    monkeypatch.setattr(ort, "preload_dlls", preload)
    monkeypatch.setattr(ort, "InferenceSession", Opened)
    OnnxStep(load_model(SMALL), device="auto")
    assert order[:2] == ["libraries", "session"]
    assert order.count("libraries") == 1
    OnnxStep(load_model(SMALL), device="cpu")
    assert order.count("libraries") == 1
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("without_cuda")
def test_a_gpu_computes_in_float32_without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    class Asked(FallenBack):
        def __init__(self, *given: Any, **named: Any) -> None:
            asked.append(dict(named["providers"]))
            super().__init__(*given, **named)

    monkeypatch.setattr(ort, "InferenceSession", Asked)
    OnnxStep(load_model(SMALL), device="auto")
    assert asked[0]["CUDAExecutionProvider"]["use_tf32"] == "0"


@pytest.mark.usefixtures("without_cuda")
def test_where_the_cpu_was_asked_for_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert OnnxStep(load_model(SMALL), device="cpu").device == "cpu"
    assert caplog.records == []


@pytest.mark.parametrize(("device", "nearly"), [("cpu", False), ("cuda", True)])
def test_results_of_a_gpu_are_compared_in_relation_to_their_size(device: str, nearly: bool) -> None:
    step: Any = SimpleNamespace(device=device)
    one = np.array([[1.0, 5e6, np.nan]], np.float32)
    assert same_values(step, one, one.copy())
    assert same_values(step, one, one * np.float32(1 + 1e-6)) is nearly
    assert not same_values(step, one, one * np.float32(1 + 1e-3))
    assert not same_values(step, one, one[:, :2])
