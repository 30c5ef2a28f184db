"""Files made to be believed too soon, to take all memory or time, or to end in a traceback: each is a refusal."""

from __future__ import annotations

import contextlib
import re
import resource
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from lstmstream.errors import CannotServe
from lstmstream.importer import keras_file as reader
from lstmstream.importer.command import import_model
from lstmstream.importer.equivalence import StepRunner, largest
from tests.importer import source_files
from tests.importer.source_files import F, H, draw, edited, keras_file, lstm_file, refusal

pytestmark = pytest.mark.torch


# --- a proof that meets NaN ------------------------------------------------------------------------------------------


def with_nan(monkeypatch: pytest.MonkeyPatch, *, answers: bool) -> None:
    """The step's answers, or its memories, are NaN at the last event of a sequence, and right before."""
    honest = StepRunner.run

    def walk(self: StepRunner, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        predictions, states = honest(self, x)
        (predictions if answers else states)[:, -1] = np.nan
        return predictions, states

    monkeypatch.setattr(StepRunner, "run", walk)


def test_the_largest_difference_is_nan_wherever_one_stands() -> None:
    nan = float("nan")
    assert largest(0.0, 2.0) == 2.0
    assert all(np.isnan(largest(*both)) for both in ((0.0, nan), (nan, 0.0)))


@pytest.mark.parametrize("answers", [True, False])
def test_a_step_of_nan_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: bool) -> None:
    with_nan(monkeypatch, answers=answers)
    assert "by up to nan" in refusal(lstm_file(tmp_path / "a.onnx"))


@pytest.mark.parametrize("answers", [True, False])
def test_a_window_of_nan_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: bool) -> None:
    with_nan(monkeypatch, answers=answers)
    text = refusal(lstm_file(tmp_path / "a.onnx"), mode="window", window=3)
    assert "the outputs for a window differ from the original's by up to nan" in text


def step_file(path: Path) -> Path:
    """A step already: y and h_next of x and h."""
    names = [("x", [None, F]), ("h", [None, H]), ("h_next", [None, H])]
    x, h, after = (helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in names)
    weights = [numpy_helper.from_array(draw(F, H), "W"), numpy_helper.from_array(draw(H, H, seed=1), "R")]
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["from_x"]),
        helper.make_node("MatMul", ["h", "R"], ["from_h"]),
        helper.make_node("Add", ["from_x", "from_h"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["h_next"]),
    ]
    graph = helper.make_graph(nodes, "step", [x, h], [after], weights)
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    path.write_bytes(model.SerializeToString())
    return path


def test_a_wrapped_step_of_nan_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = step_file(tmp_path / "a.onnx")
    assert import_model(file, out=tmp_path / "m.onnx") == 0
    with_nan(monkeypatch, answers=True)
    assert "differs from the original by up to nan" in refusal(file)


def test_weights_whose_step_is_nan_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, layout = weights_file(tmp_path / "w.pt", state_dict())
    with_nan(monkeypatch, answers=True)
    assert "the step differs from torch's equations by up to nan" in refusal(file, layout=layout)


# --- weights of torch ------------------------------------------------------------------------------------------------


def state_dict() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    parts = torch.nn.ModuleDict({"rnn": torch.nn.LSTM(F, H), "fc": torch.nn.Linear(H, 1)})
    return dict(parts.state_dict())


def weights_file(path: Path, content: Any, **options: Any) -> tuple[Path, Path]:
    """The file, and a layout for it."""
    layout = path.with_name("layout.yaml")
    layout.write_text("layers: rnn.\nhead: {linear: fc., activation: none}\nfeatures: [a, b, c]\n")
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path, **options)
    return path, layout


def test_strides_of_zero_make_no_terabytes(tmp_path: Path) -> None:
    file, layout = weights_file(tmp_path / "w.pt", {"w": torch.zeros(1).expand(10**12)})
    assert file.stat().st_size < 2000
    assert "its weights take 4000000000000 bytes, at most" in refusal(file, layout=layout)
    shared = torch.zeros(1).expand(2**28)  # none too large, all of them together
    file, layout = weights_file(tmp_path / "w.pt", {f"w{index}": shared for index in range(9)})
    assert "its weights take 9663676416 bytes" in refusal(file, layout=layout)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.zeros(3, dtype=torch.complex64),
        lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
        lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
        lambda: torch.empty(3, device="meta"),
    ],
    ids=["sparse", "complex", "quantised", "nested", "meta"],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_not_plain_are_refused(tmp_path: Path, make: Any) -> None:
    file, layout = weights_file(tmp_path / "w.pt", {**state_dict(), "odd": make()})
    text = refusal(file, layout=layout)
    assert "'odd' is not a dense tensor" in text or "holds more than weights" in text


def test_a_packed_file_of_weights_is_measured_before_it_is_unpacked(tmp_path: Path) -> None:
    file, layout = weights_file(tmp_path / "w.pt", state_dict())
    content = bytearray(file.read_bytes())
    place = content.index(b"PK\x01\x02") + 24  # the size of the first member, as the directory has it
    content[place : place + 4] = (2**32 - 2).to_bytes(4, "little")
    file.write_bytes(content)
    assert "unpacked, its weights take 42949" in refusal(file, layout=layout)


# --- files of Keras --------------------------------------------------------------------------------------------------


def test_arrays_that_were_never_written_make_no_gigabytes(tmp_path: Path) -> None:
    def unwritten(group: Any) -> None:
        for index in range(3, 15):
            group.create_dataset(str(index), (25_000_000,), "f4", chunks=(1_000_000,))

    file = keras_file(tmp_path / "a.keras", more=unwritten)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "larger than the file, so some were never" in refusal(file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB; one of them has 100,000


def test_the_limit_counts_the_arrays_of_all_layers(tmp_path: Path) -> None:
    def another(config: Any, _: Any) -> None:
        config["config"]["layers"].append({"class_name": "Mine", "config": {"name": "mine"}})

    def linked(group: Any) -> None:
        group["more"] = draw(100_000)
        group.file["layers/mine/more"] = group["more"]

    text = refusal(keras_file(tmp_path / "a.keras", change=another, more=linked))
    assert "'layers/mine/more': the weights up to here are larger than the file" in text


def test_links_that_fan_out_take_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fan(group: Any) -> None:
        for level in range(6):
            group.file.create_group(f"level{level}")
        for level in range(5):
            for index in range(8):
                group.file[f"level{level}/{index}"] = group.file[f"level{level + 1}"]
        for index in range(8):
            group.file[f"level5/{index}"] = group.file.require_group("end")
        group.file["layers/lstm/more"] = group.file["level0"]

    monkeypatch.setattr(reader, "MAX_WEIGHTS_NODES", 2000)  # so that this test takes no time either
    assert "more than 2000 groups and arrays" in refusal(keras_file(tmp_path / "a.keras", more=fan))


def with_bytes(path: Path, change: Any) -> Path:
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)
    return path


def packed(path: Path, method: int) -> Path:
    """The same .keras file, its members compressed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_damaged_and_locked_zips_are_refused(tmp_path: Path) -> None:
    def torn(content: bytearray) -> None:
        place = content.index(b"config.json") + len("config.json")
        content[place : place + 8] = b"\xff" * 8

    def locked(content: bytearray) -> None:
        for header, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            for found in re.finditer(re.escape(header), bytes(content)):
                content[found.start() + place] |= 1

    def unknown(content: bytearray) -> None:
        for header, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
            for found in re.finditer(re.escape(header), bytes(content)):
                content[found.start() + place] = 99

    said = "cannot be read as a .keras file"
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        assert said in refusal(with_bytes(packed(keras_file(tmp_path / "a.keras"), method), torn))
    text = refusal(with_bytes(keras_file(tmp_path / "a.keras"), locked))
    assert f"{said} (RuntimeError: " in text
    assert "is encrypted" in text
    assert f"{said} (NotImplementedError" in refusal(with_bytes(keras_file(tmp_path / "a.keras"), unknown))


def test_configs_that_lack_what_they_should_have_are_refused(tmp_path: Path) -> None:
    def no_end(config: Any, _: Any) -> None:
        config["class_name"] = "Functional"
        for layer in config["config"]["layers"]:
            layer["inbound_nodes"] = []
        config["config"]["output_layers"] = []

    def endless(config: Any, metadata: Any) -> None:
        no_end(config, metadata)
        config["config"]["output_layers"] = [[]]

    def control(config: Any, _: Any) -> None:
        config["config"]["layers"][0]["config"]["dtype"] = "\x1b[2J\n"

    assert "0 outputs" in refusal(keras_file(tmp_path / "a.keras", change=no_end))
    assert "IndexError" in refusal(keras_file(tmp_path / "a.keras", change=endless))
    text = refusal(keras_file(tmp_path / "a.keras", change=control))
    assert text.isprintable()
    assert "x1b[2J" in text


@pytest.mark.parametrize("suffix", [".h5", ".onnx", ".keras"])
def test_a_file_of_keras_2_is_named_with_the_remedy(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"old{suffix}"
    with h5py.File(file, "w") as old:
        old["model_weights"] = draw(3, 8)
    text = refusal(file)
    assert "an HDF5 file" in text
    assert "save it as .keras" in text


# --- graphs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2**20, 2**40, 2**62])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_inputs_too_large_to_feed_are_refused(tmp_path: Path, size: int, axis: int) -> None:
    def large(model: Any) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size

    assert "too large to be fed" in refusal(edited(lstm_file(tmp_path / "a.onnx"), large))


def test_an_axis_of_minus_one_is_free(tmp_path: Path) -> None:
    def minus(model: Any) -> None:
        for axis in (0, 1):
            model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = -1

    import_model(lstm_file(tmp_path / "plain.onnx"), out=tmp_path / "a.onnx")
    import_model(edited(lstm_file(tmp_path / "minus.onnx"), minus), out=tmp_path / "b.onnx")
    x = draw(3, 5, F)
    np.testing.assert_array_equal(
        source_files.serve(tmp_path / "a.onnx", x)[0], source_files.serve(tmp_path / "b.onnx", x)[0]
    )


def test_nodes_that_lack_what_their_operator_needs_are_refused(tmp_path: Path) -> None:
    def lstm_of(model: Any) -> Any:
        return next(node for node in model.graph.node if node.op_type == "LSTM")

    def bare(model: Any) -> None:
        del lstm_of(model).input[1:]

    def text(model: Any) -> None:
        node = lstm_of(model)
        kept = [one for one in node.attribute if one.name != "hidden_size"]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("hidden_size", "many")])

    def scalar(model: Any) -> None:
        tensor = next(one for one in model.graph.initializer if one.name.startswith("R"))
        tensor.CopyFrom(numpy_helper.from_array(np.float32(1), tensor.name))

    for change in (bare, text, scalar):
        assert "ONNX Runtime cannot" in refusal(edited(lstm_file(tmp_path / "a.onnx"), change))


def test_an_unexpected_error_is_a_refusal_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error, said in (
        (IndexError("list \x1b[2J"), r"cannot be read (IndexError: list \x1b[2J); export or save it again"),
        (MemoryError(), "needs more memory than is available"),
    ):

        def fails(*_: Any, error: Exception = error) -> None:
            raise error

        file, layout = weights_file(tmp_path / "w.pt", state_dict())
        # the last of what is done, then earlier ones
        for name in ("trial.load_model", "command.check_can_be_step", "command.read_weights"):
            monkeypatch.setattr(f"lstmstream.importer.{name}", fails)
            if name != "command.read_weights":
                assert said in refusal(lstm_file(tmp_path / "a.onnx"))
            if name != "command.check_can_be_step":
                assert said in refusal(file, layout=layout)
            monkeypatch.undo()
        assert not [path for path in tmp_path.iterdir() if path.name.endswith(".trial")]


# --- damage ----------------------------------------------------------------------------------------------------------


def damaged(folder: Path, kind: str, count: int) -> None:
    """Imports `count` damaged copies of a file."""
    options: dict[str, Any] = {}
    inside = None
    if kind == "onnx":
        file = lstm_file(folder / "a.onnx")
    elif kind == "h5":  # damaged inside a sound zip, whose checksum would tell
        file = keras_file(folder / "a.keras")
        with zipfile.ZipFile(file) as archive:
            inside = {name: archive.read(name) for name in archive.namelist()}
    elif kind == "keras":
        file = keras_file(folder / "a.keras")
    else:
        old = {"_use_new_zipfile_serialization": False} if kind == "old.pt" else {}
        file, options["layout"] = weights_file(folder / f"a.{kind}", state_dict(), **old)
    good = inside["model.weights.h5"] if inside else file.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(count):
        bad = bytearray(good)
        for _ in range(generator.integers(1, 4)):
            place = generator.integers(len(bad))
            bad[place] = generator.choice([bad[place] ^ (1 << generator.integers(8)), 0, 127, 128, 255])
        if generator.random() < 0.3:
            del bad[generator.integers(len(bad)) :]
        if inside:
            with zipfile.ZipFile(file, "w") as archive:
                for name, content in inside.items():
                    archive.writestr(name, bytes(bad) if name == "model.weights.h5" else content)
        else:
            file.write_bytes(bad)
        with contextlib.suppress(CannotServe):
            import_model(file, out=folder / "out.onnx", **options)


def test_a_damaged_file_is_imported_and_equivalent_or_refused(tmp_path: Path) -> None:
    """In a program of its own, for it has a limit of memory, and HDF5, torch and onnxruntime might crash."""
    program = [sys.executable, __file__, str(tmp_path), "40"]
    done = subprocess.run(
        program, capture_output=True, text=True, timeout=300, check=False, env=source_files.one_thread()
    )
    assert done.returncode == 0, done.stderr[-3000:]


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    for each in ("onnx", "keras", "h5", "pt", "old.pt", "safetensors"):
        damaged(Path(sys.argv[1]), each, int(sys.argv[2]))
