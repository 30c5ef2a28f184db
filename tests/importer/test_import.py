"""Files that torch and Keras export: each becomes a step that computes what the framework computes, or is refused.

The message of a refusal names the reason. No file is silently wrong.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from lstmstream.errors import CannotServe
from lstmstream.importer.command import import_model
from lstmstream.model import load_model
from tests.importer import source_files
from tests.importer.torch_models import STEPS
from tests.importer.torch_models import cases as torch_cases
from tests.models import random_model

pytestmark = [pytest.mark.torch, pytest.mark.timeout(900)]  # the first one makes the files
TOLERANCE = 1e-5

KERAS_STEPS = (
    "lstm.keras", "lstm_whole.keras", "lstm_relu.keras", "lstm_hard.keras", "lstm_linear.keras", "stacked.keras",
    "gru_after.keras", "gru_before.keras", "gru_stacked.keras", "simple.keras", "simple_relu.keras", "dropouts.keras",
    "norms.keras", "normalised.keras", "batch_normed.keras", "activations.keras", "functional.keras",
    "fixed_length.keras", "stateful.keras", "onnx_lstm.onnx", "onnx_whole.onnx", "onnx_stacked.onnx", "onnx_relu.onnx",
    "onnx_fixed.onnx", "stateful_one.keras", "stateful_stacked.keras", "stateful_gru.keras", "stateful_simple.keras",
    "stateful_cell.keras", "cells.keras",
)  # fmt: skip
CONVERTED = [f"torch/{name}.onnx" for name in sorted(STEPS)] + [f"keras/{name}" for name in KERAS_STEPS]

REFUSED = {
    **{f"torch/bidirectional_{e}.onnx": r"node '.*' \(LSTM\): direction bidirectional" for e in ("old", "new")},
    **{f"torch/mean_{e}.onnx": r"node '.*' \(ReduceMean\) differs from the original" for e in ("old", "new")},
    **{f"torch/attention_{e}.onnx": r"node '.*' \(Softmax\) differs from the original" for e in ("old", "new")},
    **{
        f"torch/encoder_decoder_{e}.onnx": r"node '.*' \(LSTM\): its initial state '.*' is computed"
        for e in ("old", "new")
    },
    "torch/step_unnamed.onnx": r"which output is the next value of 'a' is ambiguous",
    "torch/decoder.onnx": r"takes an initial state \('h'\) and returns none",
    "torch/max_over_time.onnx": r"node '/ReduceMax' \(ReduceMax\) differs",
    "torch/flatten_time.onnx": r"cannot run on one event at a time: Node \(/o/Gemm\)",
    "torch/conv_padded.onnx": r"node '/c/Conv' \(Conv\) differs",
    "torch/conv_short.onnx": r"'/r/LSTM' \(LSTM\): for 3 sequences of 5 events its input is \[3, 3, 3\].*'/c/Conv'",
    "torch/flipped.onnx": r"node '/Slice' \(Slice\) differs",
    "torch/differences.onnx": r"node '/r/LSTM' \(LSTM\): .*node '/Slice' \(Slice\) before it combines several events",
    "torch/scaled_by_window.onnx": r"node '/ReduceMean' \(ReduceMean\) differs",
    "torch/first_event_too.onnx": r"node '/Gather_1' \(Gather\) differs",
    "torch/repeated.onnx": r"node '/d/LSTM' \(LSTM\) differs",
    "torch/positions.onnx": r"node '/Add' \(Add\) differs",
    "torch/over_the_batch.onnx": r"node '/ReduceMean' \(ReduceMean\) differs",
    "torch/batch_scaled.onnx": r"output for features of 1e\+06 is not finite",
    "torch/no_memory.onnx": r"no LSTM, GRU or RNN node",
    "torch/one_event.onnx": r"takes one event .* no memory",
    "torch/no_batch.onnx": r"without a batch axis, export it with one",
    "torch/projection.onnx": r"proj_size wrongly: import the state_dict",
    "torch/tokens.onnx": r"input 'input' is not float32",
    "torch/two_inputs.onnx": r"several inputs that are sequences \('x', 'y'\)",
    "keras/bidirectional.keras": r"layer 'bidirectional' \(Bidirectional\): also reads the sequence from its end",
    "keras/one_event.keras": r"takes one event .* save it with stateful=True; otherwise build it",
    "keras/half_stateful.keras": r"\(LSTM\): stateful=False, though .* is stateful",
    "keras/backwards.keras": r"layer 'lstm_\d+' \(LSTM\): go_backwards",
    "keras/masking.keras": r"layer 'masking' \(Masking\): skips events",
    "keras/pooled.keras": r"\(GlobalAveragePooling1D\): combines several events",
    "keras/convolved.keras": r"layer 'conv1d' \(Conv1D\): combines several events",
    "keras/flattened.keras": r"layer 'flatten' \(Flatten\): joins all events",
    "keras/encoder_decoder.keras": r"layer 'repeat_vector' \(RepeatVector\)",
    "keras/branched.keras": r"layer 'concatenate' \(Concatenate\): has 2 inputs",
    "keras/embedded.keras": r"takes \[None, None\] of int32",
    "keras/half.keras": r"computes in 'mixed_float16'",
    "keras/odd_activation.keras": r"activation 'gelu' is not supported",
    "keras/onnx_gru.onnx": r"\(Loop\): a loop over time .* import the .keras file",
    "keras/onnx_masking.onnx": r"\(Loop\): a loop over time",
    "keras/onnx_backwards.onnx": r"\(ReverseSequence\) differs",
    "keras/onnx_bidirectional.onnx": r"\(LSTM\): direction bidirectional",
    "keras/onnx_pooled.onnx": r"\(ReduceMean\) differs",
    "keras/onnx_convolved.onnx": r"\(Conv\) differs",
}


def recorded_for(file: Path) -> dict[str, np.ndarray]:
    with np.load(file.with_suffix(".npz")) as kept:
        return dict(kept)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    source_files.make_all(folder)
    return folder


def test_every_file_is_expected_to_be_converted_or_refused(files: Path) -> None:
    made = {str(path.relative_to(files)) for path in files.glob("*/*") if path.suffix in {".onnx", ".keras"}}
    assert made == {*CONVERTED, *REFUSED}
    assert not {*CONVERTED} & {*REFUSED}
    assert len(torch_cases()) == sum(name.startswith("torch/") for name in made)


@pytest.mark.parametrize("name", CONVERTED)
def test_the_step_computes_what_the_framework_computes_on_whole_sequences(
    files: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The outputs of torch and Keras themselves, for sequences of two lengths, at every event that has one."""
    out = tmp_path / "model.onnx"
    assert import_model(files / name, out=out) == 0
    recorded = recorded_for(files / name)
    for number in (0, 1):
        predictions, _ = source_files.serve(out, recorded[f"x{number}"])
        expected = recorded[f"y{number}"]
        ours = predictions[:, recorded[f"at{number}"]]
        assert ours.shape == expected.shape
        assert expected.std() > 1e-4  # a constant output would show nothing
        np.testing.assert_allclose(ours, expected, rtol=TOLERANCE, atol=TOLERANCE)
    report = capsys.readouterr().out
    check = load_model(out).card.training["import"]["equivalence"]
    assert check["largest_difference"] <= TOLERANCE
    assert "largest difference" in report
    assert "warning   the past changed no output" not in report


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_a_step_is_refused_by_name(files: Path, name: str, tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    with pytest.raises(CannotServe) as refused:
        import_model(files / name, out=out)
    assert re.search(REFUSED[name], str(refused.value)), str(refused.value)
    assert list(tmp_path.iterdir()) == []  # nothing is left of a model that was refused


WINDOWS = [
    *(f"torch/{kind}_old.onnx" for kind in ("bidirectional", "mean", "attention", "encoder_decoder")),
    *(f"torch/{kind}_new.onnx" for kind in ("bidirectional", "mean", "attention", "encoder_decoder")),
    *(f"torch/{name}.onnx" for name in ("max_over_time", "flatten_time", "conv_padded", "conv_short", "flipped",
      "differences", "scaled_by_window", "first_event_too", "repeated", "positions", "no_memory", "rnn_tanh",
      "univariate", "lstm_static_old", "lstm_static_new", "learned_start_old", "softplus_head", "lstm_no_bias")),
    *(f"keras/onnx_{name}.onnx" for name in ("gru", "masking", "backwards", "bidirectional", "pooled", "convolved")),
]  # fmt: skip


@pytest.mark.parametrize("name", WINDOWS)
def test_a_window_computes_what_the_original_computes(files: Path, name: str, tmp_path: Path) -> None:
    """Run by onnxruntime as it came, on each window of six; Keras' own answers for its files."""
    out = tmp_path / "model.onnx"
    import_model(files / name, out=out, mode="window", window=6)
    card = load_model(out).card
    x = np.random.default_rng(8).normal(size=(3, 9, len(card.features))).astype(np.float32)
    predictions, _ = source_files.serve(out, x)
    original = ort.InferenceSession((files / name).read_bytes(), providers=["CPUExecutionProvider"])
    feed = original.get_inputs()[0]
    flat, batch = len(feed.shape) == 2, feed.shape[0] if isinstance(feed.shape[0], int) else 3
    for event in range(5, 9):
        window = x[:, event - 5 : event + 1, 0] if flat else x[:, event - 5 : event + 1]
        answers = []
        for start in range(0, 3, batch):  # a fixed batch may be larger than what is left: fill it up
            part = np.concatenate([window[start : start + batch], window])[:batch]
            answers.append(original.run(None, {feed.name: part})[0])
        value = np.concatenate(answers)[: max(3, batch)][:3]
        value = value[:, -1] if value.ndim == 3 else value
        np.testing.assert_allclose(predictions[:, event], value.reshape(3, -1), rtol=TOLERANCE, atol=TOLERANCE)
    if name.startswith("keras/"):
        recorded = recorded_for(files / name)
        ours, _ = source_files.serve(out, recorded["x1"])
        np.testing.assert_allclose(ours[:, 5], recorded["y1"][:, 5], rtol=TOLERANCE, atol=TOLERANCE)


def test_an_incomplete_window_is_padded_with_zeros(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    import_model(files / "torch/mean_old.onnx", out=out, mode="window", window=6)
    x = np.random.default_rng(8).normal(size=(2, 2, 3)).astype(np.float32)
    predictions, _ = source_files.serve(out, x)
    padded = np.concatenate([np.zeros((2, 4, 3), np.float32), x], axis=1)
    original = ort.InferenceSession((files / "torch/mean_old.onnx").read_bytes(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(predictions[:, 1], original.run(None, {"input": padded})[0], atol=TOLERANCE)


def test_states_that_a_file_takes_become_one_row(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.onnx"
    import_model(files / "torch/step_of_layers.onnx", out=out)
    state = load_model(out).card.state
    assert [(part.name, part.shape) for part in state.parts] == [("h", (2, 8)), ("c", (2, 8))]
    assert "already a step: 'h' <- 'h_next'" in capsys.readouterr().out


def test_learned_initial_states_become_the_initial_row(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    import_model(files / "torch/learned_start_old.onnx", out=out)
    initial = np.array(load_model(out).card.state.initial)
    assert initial.shape == (16,)
    assert np.all(initial != 0)


def test_the_report_on_a_file_of_one_length_says_so(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import_model(files / "torch/lstm_static_old.onnx", out=tmp_path / "model.onnx")
    report = capsys.readouterr().out
    assert "compared at event 6 only" in report
    assert "windows of T = 6 events, each from a state of zeros, it has never seen event 7" in report
    assert load_model(tmp_path / "model.onnx").card.training["import"]["equivalence"]["positions"] == "last"


def test_other_outputs_can_be_chosen_and_are_named(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "torch/several_outputs.onnx"
    import_model(files / name, out=tmp_path / "a.onnx")
    assert "other outputs are left out" in capsys.readouterr().out
    outputs = [one.name for one in ort.InferenceSession((files / name).read_bytes()).get_outputs()]
    import_model(files / name, out=tmp_path / "b.onnx", output=outputs[1])  # h of the last layer, [1, B, H]
    predictions, _ = source_files.serve(tmp_path / "b.onnx", np.zeros((2, 1, 3), np.float32))
    assert predictions.shape == (2, 1, 8)
    with pytest.raises(CannotServe, match="--output 'nowhere': the file has no such output"):
        import_model(files / name, out=tmp_path / "c.onnx", output="nowhere")


def test_the_score_of_class_probabilities_is_one_minus_the_first(files: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=(3, 4, 3)).astype(np.float32)
    name = files / "torch/softmax_three_old.onnx"
    import_model(name, out=tmp_path / "a.onnx")
    predictions, scores = source_files.serve(tmp_path / "a.onnx", x)
    np.testing.assert_allclose(scores, 1 - predictions[..., 0], atol=1e-6)
    assert load_model(tmp_path / "a.onnx").card.task == "classify"
    import_model(name, out=tmp_path / "b.onnx", score_column=2, task="forecast")
    predictions, scores = source_files.serve(tmp_path / "b.onnx", x)
    np.testing.assert_array_equal(scores, predictions[..., 2])
    assert load_model(tmp_path / "b.onnx").card.task == "forecast"
    with pytest.raises(CannotServe, match="--score-column 4: the output has columns 0 to 3"):
        import_model(name, out=tmp_path / "c.onnx", score_column=4)


@pytest.mark.parametrize(
    ("name", "task"),
    [("torch/lstm_last_new.onnx", "forecast"), ("torch/dense_norm_new.onnx", "classify"),
     ("keras/lstm.keras", "classify"),
     ("keras/onnx_stacked.onnx", "classify"),
     ("torch/step_of_cell.onnx", "forecast")],
)  # fmt: skip
def test_the_task_follows_from_the_last_operator(files: Path, tmp_path: Path, name: str, task: str) -> None:
    import_model(files / name, out=tmp_path / "m.onnx")
    assert load_model(tmp_path / "m.onnx").card.task == task


def test_a_model_of_lstmstream_needs_no_import(tmp_path: Path) -> None:
    own = random_model(tmp_path)
    with pytest.raises(CannotServe, match=r"is a model of lstmstream already; use it as it is \(model: "):
        import_model(own, out=tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_operators_whose_bits_depend_on_the_batch_are_padded_to_a_vector(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("log_input", "softplus_head", "sine_head"):
        import_model(files / f"torch/{name}.onnx", out=tmp_path / f"{name}.onnx")
        assert "computed over whole vectors" in capsys.readouterr().out


def test_the_same_file_gives_the_same_bytes_and_no_path(files: Path, tmp_path: Path) -> None:
    for out in ("a.onnx", "b.onnx"):
        import_model(files / "torch/lstm_last_new.onnx", out=tmp_path / out, name="m")
    content = (tmp_path / "a.onnx").read_bytes()
    assert content == (tmp_path / "b.onnx").read_bytes()
    assert str(files).encode() not in content
    assert b"torch_models.py" not in content
