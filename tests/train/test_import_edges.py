"""What import does with hostile files, files of weights, the user's options and the user's data."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import foreign
import h5py
import numpy as np
import onnx
import orjson
import polars as pl
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import nn

from lstmstream.errors import CannotServe
from lstmstream.model import load_model
from lstmstream.train.bring_in import import_model
from lstmstream.train.fit_shapes import Sizes, reshaped
from lstmstream.train.foreign_graph import checked
from lstmstream.train.sequence_graph import SequenceGraph

pytestmark = pytest.mark.torch
F, H = 3, 4


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return (0.5 * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def lstm_file(path: Path, *, length: int | None = None, whole: bool = False) -> Path:
    """A plain LSTM with a sigmoid head, as ONNX."""
    graph = SequenceGraph(F, length)
    graph.recurrent(
        "LSTM", draw(4 * H, F), draw(4 * H, H, seed=1), draw(8 * H, seed=2), ["sigmoid", "tanh"],
        linear_before_reset=None, whole=whole,
    )  # fmt: skip
    graph.dense(draw(H, 1, seed=3), draw(1, seed=4))
    graph.activate("sigmoid")
    path.write_bytes(graph.finish())
    return path


def edited(path: Path, change: Any) -> Path:
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def refusal(file: Path, **options: Any) -> str:
    out = file.parent / "refused.onnx"
    with pytest.raises(CannotServe) as refused:
        import_model(file, out=out, **options)
    assert not out.exists()
    return str(refused.value)


# --- hostile files ---------------------------------------------------------------------------------------------------


def test_weights_in_another_file_are_refused_with_the_cure(tmp_path: Path) -> None:
    def outside(model: Any) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="/etc/passwd")

    text = refusal(edited(lstm_file(tmp_path / "a.onnx"), outside))
    assert "external data is not accepted" in text
    assert "external_data=False" in text


def test_foreign_operators_are_refused_before_anything_runs(tmp_path: Path) -> None:
    def custom(model: Any) -> None:
        model.opset_import.add(domain="com.example", version=1)
        model.graph.node[-2].domain = "com.example"

    assert "operator domain 'com.example'" in refusal(edited(lstm_file(tmp_path / "a.onnx"), custom))


def test_a_tensor_of_terabytes_is_refused(tmp_path: Path) -> None:
    def giant(model: Any) -> None:
        shape = numpy_helper.from_array(np.array([1, 2**40, H]), "giant_shape")
        model.graph.initializer.append(shape)
        node = next(node for node in model.graph.node if node.op_type == "LSTM")
        model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["giant_shape"], ["giant"], name="bomb"))
        node.input.extend(["", "giant"])

    assert "node 'bomb' (ConstantOfShape) makes a tensor" in refusal(edited(lstm_file(tmp_path / "a.onnx"), giant))


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"PK\x03\x04 no zip", b"\x08\x08" * 50])
@pytest.mark.parametrize("suffix", [".onnx", ".keras", ".pt", ".safetensors"])
def test_files_that_are_nothing_are_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    file = tmp_path / f"a{suffix}"
    file.write_bytes(content)
    layout = tmp_path / "layout.yaml"
    layout.write_text("layers: lstm.\nhead: {linear: fc., activation: none}\nfeatures: [a]\n")
    options = {"layout": layout} if suffix in {".pt", ".safetensors"} else {}
    assert f"import {file}" in refusal(file, **options)
    assert f"import {tmp_path / 'absent'}" in refusal(tmp_path / f"absent{suffix}", **options)


def test_damaged_bytes_are_refused_or_proved(tmp_path: Path) -> None:
    good = lstm_file(tmp_path / "a.onnx").read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(60):
        bad = bytearray(good)
        for place in generator.integers(0, len(bad), 3):
            bad[place] = generator.integers(0, 256)
        file = tmp_path / "bad.onnx"
        file.write_bytes(bytes(bad))
        try:
            import_model(file, out=tmp_path / "out.onnx")
        except CannotServe:
            continue


def keras_file(path: Path, *, change: Any = None, kernel: Any = None, outside: Path | None = None) -> Path:
    """A .keras file by hand: LSTM(2) over 3 features."""
    layers = [
        {"class_name": "InputLayer", "config": {"name": "i", "batch_shape": [None, None, 3], "dtype": "float32"}},
        {"class_name": "LSTM", "config": {
            "name": "l", "return_sequences": False, "activation": "tanh", "recurrent_activation": "sigmoid",
        }},
    ]  # fmt: skip
    config = {"class_name": "Sequential", "config": {"layers": layers}}
    metadata = {"keras_version": "3.15.1"}
    if change:
        change(config, metadata)
    weights = io.BytesIO()
    with h5py.File(weights, "w") as file:
        group = file.create_group("layers/lstm/cell/vars")
        if outside is not None:
            group["0"] = h5py.ExternalLink(str(outside), "/secret")
        else:
            group["0"] = draw(3, 8) if kernel is None else kernel
        group["1"], group["2"] = draw(2, 8, seed=1), draw(8, seed=2)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", orjson.dumps(config))
        archive.writestr("metadata.json", orjson.dumps(metadata))
        archive.writestr("model.weights.h5", weights.getvalue())
    return path


def test_a_keras_file_is_read_without_keras(tmp_path: Path) -> None:
    assert import_model(keras_file(tmp_path / "a.keras"), out=tmp_path / "out.onnx") == 0
    found = load_model(tmp_path / "out.onnx").card.training["import"]
    assert (found["format"], found["keras"], found["file"]) == ("keras", "3.15.1", "a.keras")


def test_a_keras_file_that_links_to_another_file_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["secret"] = draw(3, 8)
    text = refusal(keras_file(tmp_path / "a.keras", outside=tmp_path / "other.h5"))
    assert "a link; weights have to be in the file" in text


def test_keras_files_that_are_old_or_odd_are_refused(tmp_path: Path) -> None:
    def old(_: Any, metadata: Any) -> None:
        metadata["keras_version"] = "2.15.0"

    def own(config: Any, _: Any) -> None:
        config["config"]["layers"][1]["class_name"] = "MyLayer"

    def deep(config: Any, _: Any) -> None:
        config["config"]["layers"][1]["config"] = {"name": ["l"]}

    assert "written by Keras '2.15.0'" in refusal(keras_file(tmp_path / "a.keras", change=old))
    assert "layer 'l' (MyLayer): is not one that can be read" in refusal(keras_file(tmp_path / "a.keras", change=own))
    assert "not a .keras file that can be read" in refusal(keras_file(tmp_path / "a.keras", change=deep))
    wrong = draw(3, 7)
    assert "import" in refusal(keras_file(tmp_path / "a.keras", kernel=wrong))


# --- options ---------------------------------------------------------------------------------------------------------


def test_features_name_and_card_are_the_users(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = lstm_file(tmp_path / "a.onnx")
    import_model(
        file, out=tmp_path / "m.onnx", features="amount, distance,hour", name="fraud", version="7", threshold=0.5
    )
    card = load_model(tmp_path / "m.onnx").card
    assert [feature.name for feature in card.features] == ["amount", "distance", "hour"]
    assert (card.name, card.version, card.threshold, card.task) == ("fraud", "7", 0.5, "classify")
    assert "amount, distance, hour" in capsys.readouterr().out
    assert "--features names 2, the input 'input' takes 3" in refusal(file, features="a,b")
    assert "names with commas between" in refusal(file, features="a,,b")
    assert "--window T" in refusal(file, mode="window")
    assert "takes sequences of 5 events" in refusal(lstm_file(tmp_path / "b.onnx", length=5), mode="window", window=4)
    with pytest.raises(CannotServe, match="there is no folder"):
        import_model(file, out=tmp_path / "no" / "m.onnx")


def test_without_names_the_features_are_numbered(tmp_path: Path) -> None:
    import_model(lstm_file(tmp_path / "a.onnx"), out=tmp_path / "m.onnx")
    assert [feature.name for feature in load_model(tmp_path / "m.onnx").card.features] == ["x0", "x1", "x2"]


@pytest.mark.parametrize("mode", ["step", "window"])
def test_what_is_missing_is_zero_or_an_error(tmp_path: Path, mode: Any) -> None:
    file = lstm_file(tmp_path / "a.onnx")
    x = draw(2, 4, F)
    x[:, 2, 1] = np.nan
    import_model(file, out=tmp_path / "zero.onnx", mode=mode, window=3)
    import_model(file, out=tmp_path / "error.onnx", mode=mode, window=3, missing="error")
    ours, _ = foreign.walk(tmp_path / "zero.onnx", x)
    filled, _ = foreign.walk(tmp_path / "zero.onnx", np.nan_to_num(x))
    np.testing.assert_array_equal(ours, filled)
    _, scores = foreign.walk(tmp_path / "error.onnx", x)
    np.testing.assert_array_equal(np.isnan(scores[:, :3]), [[False, False, True]] * 2)  # the daemon's dead letters
    whole = np.nan_to_num(x)
    for mine, theirs in zip(foreign.walk(tmp_path / "error.onnx", whole), (filled, filled[..., 0]), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_names_of_ours_in_a_foreign_graph_do_no_harm(tmp_path: Path) -> None:
    def ours(model: Any) -> None:
        names = {"input": "score", "output": "x", model.graph.node[0].output[0]: "state_out"}
        names[next(node for node in model.graph.node if node.op_type == "LSTM").output[1]] = "state"
        for node in model.graph.node:
            for fields in (node.input, node.output):
                for place, name in enumerate(fields):
                    fields[place] = names.get(name, name)
        for value in [*model.graph.input, *model.graph.output]:
            value.name = names.get(value.name, value.name)

    import_model(lstm_file(tmp_path / "plain.onnx"), out=tmp_path / "a.onnx")
    import_model(edited(lstm_file(tmp_path / "odd.onnx"), ours), out=tmp_path / "b.onnx")
    x = draw(3, 5, F)
    np.testing.assert_array_equal(foreign.walk(tmp_path / "a.onnx", x)[0], foreign.walk(tmp_path / "b.onnx", x)[0])
    assert load_model(tmp_path / "b.onnx").card.training["import"]["input"].startswith("score [batch, time")


def test_a_good_model_stays_where_a_bad_one_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    import_model(lstm_file(tmp_path / "a.onnx"), out=out)
    before = out.read_bytes()
    (tmp_path / "bad.onnx").write_bytes(b"no")
    with pytest.raises(CannotServe):
        import_model(tmp_path / "bad.onnx", out=out)
    assert out.read_bytes() == before


def test_a_past_that_changes_nothing_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def dead(model: Any) -> None:
        for tensor in model.graph.initializer:
            if tensor.name.startswith(("kernel", "R")):
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 0, tensor.name))

    import_model(edited(lstm_file(tmp_path / "a.onnx"), dead), out=tmp_path / "m.onnx")
    assert "the past did not change an answer" in capsys.readouterr().out


def test_memories_are_compared_where_the_head_says_nothing(tmp_path: Path) -> None:
    """A head of zeros hides a layer that looks at the future; its memory does not."""

    def blind(model: Any) -> None:
        graph = model.graph
        last = next(tensor for tensor in graph.initializer if tensor.name.startswith("kernel"))
        last.CopyFrom(numpy_helper.from_array(np.zeros((H, 1), np.float32), last.name))
        graph.initializer.append(numpy_helper.from_array(np.array([1]), "time"))
        graph.node.insert(0, helper.make_node("CumSum", ["input", "time"], ["sums"], name="future", reverse=1))
        graph.node[1].input[0] = "sums"

    assert "node 'lstm_1' (LSTM) differs" in refusal(edited(lstm_file(tmp_path / "a.onnx"), blind))


def test_reshapes_of_fixed_sizes_are_freed() -> None:
    sizes = Sizes(batch=2, length=5, batches=(4, 6), length_now=1)
    assert reshaped((5, 2, 1, 8), (5, 2, 8), ((1, 4, 1, 8), (1, 6, 1, 8)), sizes) == [1, -1, 8]
    assert reshaped((10, 4), (2, 5, 4), ((4, 4), (6, 4)), sizes) == [-1, 1, 4]
    assert reshaped((2, 5, 4), (10, 4), ((4, 1, 4), (6, 1, 4)), sizes) == [-1, 4]
    assert reshaped((2, 5, 4), (2, 20), ((4, 1, 4), (6, 1, 4)), sizes) == [-1, 4]
    assert reshaped((1, 6, 8), (1, 6, 8), ((4, 1, 8), (6, 1, 8)), Sizes(1, 6, (4, 6), 1)) == [-1, 1, 8]


def test_a_file_without_inputs_is_refused() -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])], "g", [], [helper.make_tensor_value_info("y", 1, [1])],
        [numpy_helper.from_array(np.ones(1, np.float32), "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    with pytest.raises(CannotServe, match="it is a constant"):
        checked(model.SerializeToString(), "f")


# --- the user's data -------------------------------------------------------------------------------------------------


def table(keys: int = 3, events: int = 9) -> pl.DataFrame:
    x = draw(keys * events, F, seed=5)
    rows = {f"f{index}": x[:, index] for index in range(F)}
    return pl.DataFrame({"k": [f"k{n % keys}" for n in range(keys * events)], "t": range(keys * events), **rows})


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_compare_says_where_the_two_modes_part(tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str) -> None:
    data = tmp_path / f"d.{suffix}"
    shuffled = table().sample(fraction=1, shuffle=True, seed=1)
    {"csv": shuffled.write_csv, "jsonl": shuffled.write_ndjson, "parquet": shuffled.write_parquet}[suffix](data)
    file = lstm_file(tmp_path / "a.onnx")
    options: dict[str, Any] = {"features": "f0,f1,f2", "window": 4, "compare": data, "key": "k", "timestamp": "t"}
    import_model(file, out=tmp_path / "m.onnx", **options)
    report = capsys.readouterr().out
    assert "3 keys, 27 events" in report
    assert "they part from event 5 on" in report
    lines = {int(line.split()[0]): line.split() for line in report.splitlines() if line.split()[0].isdigit()}
    import_model(file, out=tmp_path / "w.onnx", mode="window", features="f0,f1,f2", window=4)
    x = np.stack([part.select("f0", "f1", "f2").to_numpy() for part in table().partition_by("k", maintain_order=True)])
    gaps = np.abs(foreign.walk(tmp_path / "m.onnx", x)[1] - foreign.walk(tmp_path / "w.onnx", x)[1])
    for event, line in lines.items():
        assert line[1] == "3"
        assert float(line[2]) == pytest.approx(gaps[:, event - 1].mean(), rel=0.01, abs=1e-7)
        assert float(line[3]) == pytest.approx(gaps[:, event - 1].max(), rel=0.01, abs=1e-7)
    assert float(lines[4][3]) < 1e-6 < float(lines[5][3])  # a full window begins with zeros, as the step did


def test_compare_of_short_sequences_says_that_nothing_can_be_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "d.csv"
    table(keys=1, events=3).write_csv(data)
    import_model(lstm_file(tmp_path / "a.onnx"), out=tmp_path / "m.onnx", features="f0,f1,f2", window=4, compare=data)
    assert "no key has more than 4 events" in capsys.readouterr().out


def test_compare_of_what_can_only_be_a_window_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def backwards(model: Any) -> None:
        node = next(node for node in model.graph.node if node.op_type == "LSTM")
        node.attribute.append(helper.make_attribute("direction", "reverse"))

    table().write_csv(tmp_path / "d.csv")
    file = edited(lstm_file(tmp_path / "a.onnx"), backwards)
    options: dict[str, Any] = {"features": "f0,f1,f2", "window": 4, "compare": tmp_path / "d.csv"}
    import_model(file, out=tmp_path / "m.onnx", mode="window", **options)
    report = capsys.readouterr().out
    assert "there is nothing to choose: step mode is not possible" in report
    assert "direction reverse" in report


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"key": "absent"}, "no column absent"),
        ({"features": "f0,f1,other"}, "no column other"),
        ({"features": "f0,f1,text"}, "a feature is no number"),
        ({"compare": "d.txt"}, "should end in .csv"),
        ({"compare": "absent.csv"}, "cannot be read"),
        ({"window": None}, "needs the length of the windows"),
    ],
)
def test_data_that_cannot_be_compared_is_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    table().with_columns(text=pl.lit("a")).write_csv(tmp_path / "d.csv")
    given = {"features": "f0,f1,f2", "window": 4, "compare": "d.csv", **options}
    given["compare"] = tmp_path / given["compare"]
    with pytest.raises(CannotServe, match=said):
        import_model(lstm_file(tmp_path / "a.onnx"), out=tmp_path / "m.onnx", **given)


# --- weights ---------------------------------------------------------------------------------------------------------

LAYOUT = "cell: {cell}\nlayers: {layers}\nhead: {{linear: fc., activation: {activation}}}\nfeatures: {features}\n"


class Net(nn.Module):
    def __init__(self, cell: Any, out: int, **options: Any) -> None:
        super().__init__()
        self.rnn = cell(F, H, batch_first=True, **options)
        self.fc = nn.Linear(options.get("proj_size") or H, out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.rnn(x)[0])


def layout_file(tmp_path: Path, **values: Any) -> Path:
    path = tmp_path / "layout.yaml"
    given = {"cell": "lstm", "layers": "rnn.", "activation": "none", "features": "[a, b, c]", **values}
    path.write_text(LAYOUT.format(**given) + given.get("more", ""))
    return path


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("cell", "options", "activation", "out"),
    [
        ("lstm", {"num_layers": 2}, "sigmoid", 1),
        ("lstm", {"proj_size": 2}, "none", 2),
        ("lstm", {"bias": False}, "softmax", 3),
        ("gru", {"num_layers": 3}, "none", 1),
    ],
)
def test_weights_and_a_layout_are_the_model_of_torch(
    tmp_path: Path, suffix: str, cell: str, options: dict[str, Any], activation: str, out: int
) -> None:
    torch.manual_seed(0)
    net = Net({"lstm": nn.LSTM, "gru": nn.GRU}[cell], out, **options)
    file = tmp_path / f"w{suffix}"
    if suffix == ".pt":
        torch.save({"epoch": 3, "state_dict": net.state_dict()}, file)
    else:
        save_file(net.state_dict(), file)
    layout = layout_file(tmp_path, cell=cell, activation=activation)
    import_model(file, out=tmp_path / "m.onnx", layout=layout)
    x = 3 * draw(4, 9, F)
    with torch.no_grad():
        expected = net(torch.from_numpy(x))
        expected = {"sigmoid": torch.sigmoid, "softmax": lambda v: v.softmax(-1), "none": lambda v: v}[activation](
            expected
        )
    predictions, _ = foreign.walk(tmp_path / "m.onnx", x)
    np.testing.assert_allclose(predictions, expected.numpy(), atol=1e-5)
    assert load_model(tmp_path / "m.onnx").card.task == ("forecast" if activation == "none" else "classify")


def test_scaling_stands_in_the_layout(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Net(nn.LSTM, 1)
    torch.save(net.state_dict(), tmp_path / "w.pt")
    fields = "[a, {name: b, centre: 5, scale: 2}, {name: c, log: true, centre: 1, scale: 0.5}]"
    import_model(tmp_path / "w.pt", out=tmp_path / "m.onnx", layout=layout_file(tmp_path, features=fields))
    raw = np.abs(draw(2, 6, F)) * 20
    scaled = np.stack([raw[..., 0], (raw[..., 1] - 5) / 2, (np.log1p(raw[..., 2]) - 1) / 0.5], axis=-1)
    with torch.no_grad():
        expected = net(torch.from_numpy(scaled)).numpy()
    np.testing.assert_allclose(foreign.walk(tmp_path / "m.onnx", raw)[0], expected, atol=1e-5)


def test_weights_that_do_not_fit_their_layout_are_refused(tmp_path: Path) -> None:
    net = Net(nn.LSTM, 1)
    file = tmp_path / "w.pt"
    torch.save(net.state_dict(), file)
    assert "describe them: --layout" in refusal(file)
    assert "there is no encoder.weight_ih_l0" in refusal(file, layout=layout_file(tmp_path, layers="encoder."))
    assert "there are 2, the first layer takes 3" in refusal(file, layout=layout_file(tmp_path, features="[a, b]"))
    assert "activation" in refusal(file, layout=layout_file(tmp_path, activation="softmax"))
    assert "head.activation: must be one of" in refusal(file, layout=layout_file(tmp_path, activation="gelu"))
    assert "import" in refusal(file, layout=layout_file(tmp_path, cell="gru"))
    assert "export the model to ONNX" in refusal(file, layout=layout_file(tmp_path), mode="window")
    extra = {**net.state_dict(), "norm.weight": torch.ones(3)}
    torch.save(extra, file)
    assert "does not speak of 'norm.weight'" in refusal(file, layout=layout_file(tmp_path))
    import_model(file, out=tmp_path / "m.onnx", layout=layout_file(tmp_path, more="ignore: [norm.]\n"))
    torch.save({**net.state_dict(), "fc.bias": torch.tensor([float("nan")])}, file)
    assert "'fc.bias' is not finite" in refusal(file, layout=layout_file(tmp_path))
    torch.save(Net(nn.LSTM, 1, bidirectional=True).state_dict(), file)
    assert "bidirectional" in refusal(file, layout=layout_file(tmp_path))


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"a": Evil()}, tmp_path / "w.pt")
    assert "holds more than weights" in refusal(tmp_path / "w.pt", layout=layout_file(tmp_path))
    assert not (tmp_path / "ran").exists()
