"""What import does with hostile files, the user's options and the user's data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pytest
from onnx import TensorProto, helper, numpy_helper

from lstmstream.errors import CannotServe
from lstmstream.importer.command import import_model
from lstmstream.importer.graph import parse_checked
from lstmstream.importer.static_shapes import AxisSizes, dynamic_reshape
from lstmstream.model import inspect_json, load_model
from tests.importer import source_files
from tests.importer.source_files import F, H, draw, edited, keras_file, lstm_file, refusal
from tests.test_extras import lstmstream

pytestmark = pytest.mark.torch
# --- hostile files ---------------------------------------------------------------------------------------------------


def test_weights_in_another_file_are_refused_with_the_remedy(tmp_path: Path) -> None:
    def outside(model: Any) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="/etc/passwd")

    text = refusal(edited(lstm_file(tmp_path / "a.onnx"), outside))
    assert "only a file in the folder of the model is read" in text
    assert "external_data=False" in text


def test_operators_of_other_domains_are_refused_before_anything_runs(tmp_path: Path) -> None:
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


def test_damaged_bytes_are_refused_or_equivalent(tmp_path: Path) -> None:
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


def test_a_keras_file_is_read_without_keras(tmp_path: Path) -> None:
    assert import_model(keras_file(tmp_path / "a.keras"), out=tmp_path / "out.onnx") == 0
    found = load_model(tmp_path / "out.onnx").card.training["import"]
    assert (found["format"], found["keras"], found["file"]) == ("keras", "3.15.1", "a.keras")


def test_import_needs_no_torch(tmp_path: Path) -> None:
    for file in (lstm_file(tmp_path / "a.onnx"), keras_file(tmp_path / "b.keras")):
        done = lstmstream("import", file, "--out", tmp_path / "m.onnx", without=("torch", "optuna", "polars"))
        assert done.returncode == 0, done.stderr
        assert load_model(tmp_path / "m.onnx").card.training["import"]["file"] == file.name


def test_the_outcome_for_a_program(tmp_path: Path) -> None:
    done = lstmstream("import", lstm_file(tmp_path / "a.onnx"), "--out", tmp_path / "m.onnx", "--json", without=())
    assert done.returncode == 0, done.stderr
    model = load_model(tmp_path / "m.onnx")
    assert json.loads(done.stdout) == json.loads(json.dumps(inspect_json(model)))
    assert str(tmp_path / "m.onnx") in done.stderr


def test_a_keras_file_that_links_to_another_file_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["secret"] = draw(3, 8)
    text = refusal(keras_file(tmp_path / "a.keras", outside=tmp_path / "other.h5"))
    assert "a link; the weights must be in the file" in text


def test_keras_files_that_are_old_or_odd_are_refused(tmp_path: Path) -> None:
    def old(_: Any, metadata: Any) -> None:
        metadata["keras_version"] = "2.15.0"

    def own(config: Any, _: Any) -> None:
        config["config"]["layers"][1]["class_name"] = "MyLayer"

    def deep(config: Any, _: Any) -> None:
        config["config"]["layers"][1]["config"] = {"name": ["l"]}

    assert "written by Keras '2.15.0'" in refusal(keras_file(tmp_path / "a.keras", change=old))

    def no_bias(config: Any, _: Any) -> None:
        config["config"]["layers"][1]["config"]["use_bias"] = False

    assert "has 3 weights, should have 2" in refusal(keras_file(tmp_path / "a.keras", change=no_bias))
    assert "layer 'l' (MyLayer): is not supported" in refusal(keras_file(tmp_path / "a.keras", change=own))
    assert "cannot be read as a .keras file" in refusal(keras_file(tmp_path / "a.keras", change=deep))
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
    assert "--features has 2 names, but the input 'input' takes 3" in refusal(file, features="a,b")
    assert "distinct names separated by commas" in refusal(file, features="a,,b")
    assert "--window T" in refusal(file, mode="window")
    assert "accepts only sequences of 5 events" in refusal(
        lstm_file(tmp_path / "b.onnx", length=5), mode="window", window=4
    )
    with pytest.raises(CannotServe, match=r"the folder .* does not exist"):
        import_model(file, out=tmp_path / "no" / "m.onnx")


def test_without_names_the_features_are_numbered(tmp_path: Path) -> None:
    import_model(lstm_file(tmp_path / "a.onnx"), out=tmp_path / "m.onnx")
    assert [feature.name for feature in load_model(tmp_path / "m.onnx").card.features] == ["x0", "x1", "x2"]


@pytest.mark.parametrize("mode", ["step", "window"])
def test_what_is_missing_is_zero_or_an_error(tmp_path: Path, mode: Any) -> None:
    file = lstm_file(tmp_path / "a.onnx")
    x = draw(2, 4, F)
    x[:, 2, 1] = np.nan
    import_model(file, out=tmp_path / "zero.onnx", mode=mode, window=3 if mode == "window" else None)
    import_model(file, out=tmp_path / "error.onnx", mode=mode, window=3 if mode == "window" else None, missing="error")
    ours, _ = source_files.serve(tmp_path / "zero.onnx", x)
    filled, _ = source_files.serve(tmp_path / "zero.onnx", np.nan_to_num(x))
    np.testing.assert_array_equal(ours, filled)
    _, scores = source_files.serve(tmp_path / "error.onnx", x)
    np.testing.assert_array_equal(np.isnan(scores[:, :3]), [[False, False, True]] * 2)  # the daemon's dead letters
    whole = np.nan_to_num(x)
    for mine, theirs in zip(source_files.serve(tmp_path / "error.onnx", whole), (filled, filled[..., 0]), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_reserved_names_in_a_file_do_no_harm(tmp_path: Path) -> None:
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
    np.testing.assert_array_equal(
        source_files.serve(tmp_path / "a.onnx", x)[0], source_files.serve(tmp_path / "b.onnx", x)[0]
    )
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
    assert "the past changed no output" in capsys.readouterr().out


def test_states_are_compared_where_the_output_is_constant(tmp_path: Path) -> None:
    """A head of zeros hides a layer that looks at the future; its memory does not."""

    def blind(model: Any) -> None:
        graph = model.graph
        last = next(tensor for tensor in graph.initializer if tensor.name.startswith("kernel"))
        last.CopyFrom(numpy_helper.from_array(np.zeros((H, 1), np.float32), last.name))
        graph.initializer.append(numpy_helper.from_array(np.array([1]), "time"))
        graph.node.insert(0, helper.make_node("CumSum", ["input", "time"], ["sums"], name="future", reverse=1))
        graph.node[1].input[0] = "sums"

    assert "node 'lstm_1' (LSTM) differs" in refusal(edited(lstm_file(tmp_path / "a.onnx"), blind))


def with_start(path: Path, rows: np.ndarray, length: int = 5) -> Path:
    """The plain LSTM with a first h of its own, its batch fixed to the number of `rows`."""

    def start(model: Any) -> None:
        node = next(node for node in model.graph.node if node.op_type == "LSTM")
        model.graph.initializer.append(numpy_helper.from_array(rows[np.newaxis], "start"))
        node.input.extend(["", "start"])
        for value in [*model.graph.input, *model.graph.output]:
            value.type.tensor_type.shape.dim[0].dim_value = len(rows)

    return edited(lstm_file(path, length=length), start)


def test_initial_states_that_differ_within_a_batch_are_refused(tmp_path: Path) -> None:
    file = with_start(tmp_path / "a.onnx", draw(2, H))
    for mode in ("step", "window"):
        assert "the initial state 'start' is not the same for every sequence" in refusal(file, mode=mode)


def test_an_initial_state_stays_in_a_window_of_any_batch(tmp_path: Path) -> None:
    row = draw(1, H, seed=9)
    import_model(with_start(tmp_path / "a.onnx", row), out=tmp_path / "w.onnx", mode="window")
    import_model(with_start(tmp_path / "b.onnx", row), out=tmp_path / "s.onnx")
    assert load_model(tmp_path / "s.onnx").card.state.initial[:H] == pytest.approx(row[0])
    x = draw(3, 5, F)
    ours, theirs = (source_files.serve(tmp_path / name, x)[0][:, 4] for name in ("w.onnx", "s.onnx"))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_events_that_change_nothing_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def deaf(model: Any) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name.startswith("W"))
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 0, tensor.name))

    import_model(edited(lstm_file(tmp_path / "a.onnx"), deaf), out=tmp_path / "m.onnx")
    assert "the events changed no output" in capsys.readouterr().out


def test_reshapes_of_static_sizes_become_dynamic() -> None:
    sizes = AxisSizes(batch=2, length=5, batches=(4, 6), new_length=1)
    assert dynamic_reshape((5, 2, 1, 8), (5, 2, 8), ((1, 4, 1, 8), (1, 6, 1, 8)), sizes) == [1, -1, 8]
    assert dynamic_reshape((10, 4), (2, 5, 4), ((4, 4), (6, 4)), sizes) == [-1, 1, 4]
    assert dynamic_reshape((2, 5, 4), (10, 4), ((4, 1, 4), (6, 1, 4)), sizes) == [-1, 4]
    assert dynamic_reshape((2, 5, 4), (2, 20), ((4, 1, 4), (6, 1, 4)), sizes) == [-1, 4]
    assert dynamic_reshape((1, 6, 8), (1, 6, 8), ((4, 1, 8), (6, 1, 8)), AxisSizes(1, 6, (4, 6), 1)) == [-1, 1, 8]


def test_a_file_without_inputs_is_refused() -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])], "g", [], [helper.make_tensor_value_info("y", 1, [1])],
        [numpy_helper.from_array(np.ones(1, np.float32), "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    with pytest.raises(CannotServe, match="it is a constant"):
        parse_checked(model.SerializeToString(), "f")


# --- the user's data -------------------------------------------------------------------------------------------------


def table(keys: int = 3, events: int = 9) -> pl.DataFrame:
    x = draw(keys * events, F, seed=5)
    rows = {f"f{index}": x[:, index] for index in range(F)}
    return pl.DataFrame({"k": [f"k{n % keys}" for n in range(keys * events)], "t": range(keys * events), **rows})


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_compare_reports_where_the_modes_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    data = tmp_path / f"d.{suffix}"
    shuffled = table().sample(fraction=1, shuffle=True, seed=1)
    {"csv": shuffled.write_csv, "jsonl": shuffled.write_ndjson, "parquet": shuffled.write_parquet}[suffix](data)
    file = lstm_file(tmp_path / "a.onnx")
    options: dict[str, Any] = {"features": "f0,f1,f2", "window": 4, "compare": data, "key": "k", "timestamp": "t"}
    import_model(file, out=tmp_path / "m.onnx", **options)
    report = capsys.readouterr().out
    assert "3 keys, 27 events" in report
    assert "they differ from event 5 on" in report
    lines = {int(line.split()[0]): line.split() for line in report.splitlines() if line.split()[0].isdigit()}
    import_model(file, out=tmp_path / "w.onnx", mode="window", features="f0,f1,f2", window=4)
    x = np.stack([part.select("f0", "f1", "f2").to_numpy() for part in table().partition_by("k", maintain_order=True)])
    gaps = np.abs(source_files.serve(tmp_path / "m.onnx", x)[1] - source_files.serve(tmp_path / "w.onnx", x)[1])
    for event, line in lines.items():
        assert line[1] == "3"
        assert float(line[2]) == pytest.approx(gaps[:, event - 1].mean(), rel=0.01, abs=1e-7)
        assert float(line[3]) == pytest.approx(gaps[:, event - 1].max(), rel=0.01, abs=1e-7)
    assert float(lines[4][3]) < 1e-6 < float(lines[5][3])  # a full window begins with zeros, as the step did


def test_compare_takes_keys_of_different_lengths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "d.csv"
    ragged = table().filter((pl.col("k") != "k0") | (pl.col("t") < 10))  # 4 of its 9 events
    ragged.write_csv(data)
    options: dict[str, Any] = {"features": "f0,f1,f2", "window": 4, "compare": data, "key": "k", "timestamp": "t"}
    import_model(lstm_file(tmp_path / "a.onnx"), out=tmp_path / "m.onnx", **options)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    keys = {int(line[0]): int(line[1]) for line in lines if line[0].isdigit()}
    assert (keys[4], keys[5], keys[9]) == (3, 2, 2)


def test_compare_of_short_sequences_reports_that_they_cannot_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "d.csv"
    table(keys=1, events=3).write_csv(data)
    import_model(lstm_file(tmp_path / "a.onnx"), out=tmp_path / "m.onnx", features="f0,f1,f2", window=4, compare=data)
    assert "no key has more than 4 events" in capsys.readouterr().out


def test_compare_of_a_graph_that_can_only_be_a_window(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def backwards(model: Any) -> None:
        node = next(node for node in model.graph.node if node.op_type == "LSTM")
        node.attribute.append(helper.make_attribute("direction", "reverse"))

    table().write_csv(tmp_path / "d.csv")
    file = edited(lstm_file(tmp_path / "a.onnx"), backwards)
    options: dict[str, Any] = {"features": "f0,f1,f2", "window": 4, "compare": tmp_path / "d.csv"}
    import_model(file, out=tmp_path / "m.onnx", mode="window", **options)
    report = capsys.readouterr().out
    assert "only window mode is possible; step mode is not" in report
    assert "direction reverse" in report


def test_compare_leaves_out_events_that_no_key_has_a_score_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "d.csv"
    table(keys=1).with_columns(f1=pl.when(pl.col("t") == 4).then(None).otherwise(pl.col("f1"))).write_csv(data)
    options: dict[str, Any] = {"features": "f0,f1,f2", "window": 4, "compare": data, "missing": "error"}
    import_model(lstm_file(tmp_path / "a.onnx"), out=tmp_path / "m.onnx", **options)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {1, 2, 3, 4} <= {int(line[0]) for line in lines if line[0].isdigit()} <= {1, 2, 3, 4, 6, 8, 9}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"key": "absent"}, "no field 'absent'"),
        ({"features": "f0,f1,other"}, "no field 'other'"),
        ({"features": "f0,f1,text"}, "field 'text' is 'a', not a number"),
        ({"compare": "d.txt"}, "has no events"),
        ({"compare": "absent.csv"}, "no such file"),
        ({"window": None}, "needs the length of the windows"),
    ],
)
def test_data_that_cannot_be_compared_is_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    table().with_columns(text=pl.lit("a")).write_csv(tmp_path / "d.csv")
    given = {"features": "f0,f1,f2", "window": 4, "compare": "d.csv", **options}
    given["compare"] = tmp_path / given["compare"]
    (tmp_path / "d.txt").touch()
    with pytest.raises(CannotServe, match=said):
        import_model(lstm_file(tmp_path / "a.onnx"), out=tmp_path / "m.onnx", **given)


def test_the_original_is_not_overwritten(tmp_path: Path) -> None:
    file = lstm_file(tmp_path / "a.onnx")
    content = file.read_bytes()
    with pytest.raises(CannotServe, match=r"--out .*a.onnx: is also the file of the model to import; name another"):
        import_model(file, out=file)
    assert file.read_bytes() == content


def test_options_that_would_have_no_effect_are_refused(tmp_path: Path) -> None:
    file = lstm_file(tmp_path / "a.onnx")
    assert "--window 4: is for --mode window, and this is --mode step" in refusal(file, window=4)
    assert "--key and --timestamp are columns of the data of --compare" in refusal(file, key="customer")
