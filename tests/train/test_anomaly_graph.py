"""The graph of `builtin:anomaly` beside its formulas written once more, row by row, in float64."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lstmstream.errors import CannotServe
from lstmstream.model import load_model
from lstmstream.serve.score import score_file
from lstmstream.serve.step import OnnxStep
from lstmstream.serve.step_model import StepInput
from lstmstream.train.anomaly_graph import anomaly_model
from lstmstream.train.anomaly_sizes import KEY_FLOATS, LARGE, MODELS, SMALL, Sizes
from tests.train.reference_anomaly import Detector
from tests.verify.world import VerifyWorld, events, fill

Rows = NDArray[np.float32]
MINUTES_MS, START_MS = 300_000, 1_700_000_000_000
CHANNEL_FLOATS = LARGE.channel_floats
BOTH = pytest.mark.parametrize("sizes", MODELS.values(), ids=list(MODELS))


def opened(*fields: str, sizes: Sizes = LARGE) -> OnnxStep:
    return OnnxStep(load_model(f"builtin:{sizes.name}:{','.join(fields)}"), device="cpu")


def walked(
    step: OnnxStep, series: list[Rows], *, gaps: dict[int, float] | None = None, sizes: tuple[int, ...] = (10**6,)
) -> tuple[NDArray[np.float32], Rows]:
    """Predictions [N, T, 4] of N series [T, C], and the states after them. Calls take so many keys in turn."""
    count, rows = len(series), len(series[0])
    state = np.tile(np.array(step.card.state.initial, np.float32), (count, 1))
    out = np.empty((count, rows, 4), np.float32)
    for row in range(rows):
        elapsed = np.float32(np.nan if row == 0 else (gaps or {}).get(row, MINUTES_MS / 1000))
        start, turn = 0, row
        while start < count:
            end = min(count, start + sizes[turn % len(sizes)])
            keys, turn = end - start, turn + 1
            given = StepInput(
                np.array([one[row] for one in series[start:end]]),
                np.empty((keys, 0), np.int64),
                np.full(keys, START_MS + row * MINUTES_MS),
                np.full(keys, elapsed),
                state[start:end],
            )
            result = step.step(given)
            assert result.prediction is not None
            state[start:end], out[start:end, row] = result.state, result.prediction
            assert result.score.tolist() == result.prediction[:, 1].tolist()
            start = end
    return out, state


def ordinary(rows: int, channels: int, seed: int) -> Rows:
    """A wave with noise, a spike, a new level, a flat stretch, and values that are missing."""
    random, time = np.random.default_rng(seed), np.arange(rows)[:, np.newaxis]
    made = np.sin(time / (5 + np.arange(channels))) * 3 + random.standard_normal((rows, channels)) * 0.3 + 100
    made[rows // 2] += 12
    made[rows * 3 // 4 :] += 4
    made[rows * 4 // 5 : rows * 5 // 6] = made[rows * 4 // 5]
    made[random.random((rows, channels)) < 0.03] = np.nan
    return made.astype(np.float32)


@BOTH
def test_the_package_has_what_the_builder_makes(sizes: Sizes) -> None:
    content, card = anomaly_model(sizes)
    shipped = load_model(f"builtin:{sizes.name}:value")
    assert shipped.card.state == card.state
    assert card.state.size == KEY_FLOATS + sizes.channel_floats
    import onnx

    def nodes(given: bytes) -> list[bytes]:
        graph = onnx.load_from_string(given).graph
        return [one.SerializeToString(deterministic=True) for one in [*graph.node, *graph.initializer]]

    assert nodes(shipped.content) == nodes(content)


def test_the_small_one_has_at_most_a_kibibyte_for_a_number() -> None:
    assert 4 * SMALL.state().size <= 1024


@BOTH
@pytest.mark.parametrize("channels", [1, 3])
def test_the_graph_does_what_the_formulas_say(channels: int, sizes: Sizes) -> None:
    rows = 900 if sizes is LARGE else 3000
    series = ordinary(rows, channels, seed=channels)
    gaps = {500: 2 * 86_400.0}
    found, _ = walked(opened(*"abc"[:channels], sizes=sizes), [series], gaps=gaps)
    detector = Detector(channels, sizes)
    expected = np.array(
        [
            detector.step(value, gaps.get(row, MINUTES_MS / 1000), START_MS + row * MINUTES_MS)
            for row, value in enumerate(series.astype(np.float64))
        ]
    )
    np.testing.assert_allclose(found[0, :, 1:], expected[:, 1:], rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(found[0, 150:, 0], expected[150:, 0], rtol=2e-2, atol=2e-2)
    assert expected[:, 1].max() > 0.5, "there is an alarm"
    assert expected[:, 2].max() > 0.9


@BOTH
def test_bits_do_not_depend_on_the_batch(sizes: Sizes) -> None:
    """States of many rows, since those of the first have zeros where later ones have not."""
    series = [ordinary(400, 2, seed=seed) * np.float32(10.0 ** (seed % 7 - 3)) for seed in range(70)]
    step = opened("a", "b", sizes=sizes)
    together, states = walked(step, series)
    apart, others = walked(step, series, sizes=(1, 3, 7, 64))
    assert together.tobytes() == apart.tobytes()
    assert states.tobytes() == others.tobytes()


@BOTH
def test_the_unit_does_not_matter(sizes: Sizes) -> None:
    series = ordinary(500, 1, seed=5)
    found, _ = walked(opened("a", sizes=sizes), [series, series * 1024, series / 4096])
    for other in (found[1], found[2]):
        np.testing.assert_allclose(other[:, 1:], found[0, :, 1:], rtol=1e-3, atol=1e-4)


def test_nothing_of_later_rows_is_known() -> None:
    series = ordinary(400, 1, seed=6)
    changed = series.copy()
    changed[300:] = 7
    found, _ = walked(opened("a"), [series, changed])
    assert found[0, :300].tobytes() == found[1, :300].tobytes()
    assert found[0, 300:].tobytes() != found[1, 300:].tobytes()


@BOTH
def test_a_channel_that_is_missing_changes_nothing(sizes: Sizes) -> None:
    """Its state rests, and the readings are those of the other channel."""
    series = ordinary(400, 1, seed=7)
    with_missing = np.concatenate([series, np.full_like(series, np.nan)], axis=1)
    alone, _ = walked(opened("a", sizes=sizes), [series])
    both, state = walked(opened("a", "b", sizes=sizes), [with_missing])
    assert alone.tobytes() == both.tobytes()
    initial = np.array(opened("a", "b", sizes=sizes).card.state.initial, np.float32)
    assert state[0, -sizes.channel_floats :].tobytes() == initial[-sizes.channel_floats :].tobytes()


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(700),
        np.full(700, 3e38),
        np.tile([-3e38, 3e38], 350),
        np.tile([1e-40, -1e-40, 0.0, 1e38], 175),
        np.concatenate([np.zeros(690), [1e30] * 10]),
    ],
    ids=["zeros", "largest", "both ends", "any size", "a jump"],
)
@BOTH
def test_extremes_stay_finite(values: NDArray[np.float64], sizes: Sizes) -> None:
    found, state = walked(opened("a", sizes=sizes), [values.astype(np.float32)[:, np.newaxis]])
    assert np.isfinite(found).all()
    assert np.isfinite(state).all()


@BOTH
def test_a_constant_raises_no_alarm_and_a_change_of_it_does(sizes: Sizes) -> None:
    series = np.full((1000, 1), 20.0, np.float32)
    series[900:] = 21
    found, _ = walked(opened("a", sizes=sizes), [series])
    assert found[0, :900, 1].max() < 0.5
    assert found[0, 900:910, 2].max() >= 1.0


def test_a_value_that_hangs_raises_one_alarm() -> None:
    """Where it never did for so long: a stretch of 30 rows before makes it 120 of them."""
    made = np.random.default_rng(8).standard_normal((1200, 1)).astype(np.float32) * 0.01
    made[::2] += 1  # a jitter that no other measure notices when it stops
    hanging, used_to = made.copy(), made.copy()
    hanging[700:] = used_to[700:] = made[700]
    used_to[400:430] = made[400]
    found, state = walked(opened("a"), [hanging, used_to])
    detectors = [Detector(1), Detector(1)]
    for detector, series, readings in zip(detectors, (hanging, used_to), found, strict=True):
        for row, value in enumerate(series.astype(np.float64)):
            expected = detector.step(value, MINUTES_MS / 1000, START_MS + row * MINUTES_MS)
            assert readings[row, 1] == pytest.approx(expected[1], rel=2e-3, abs=2e-4)
    assert found[0, 759, 1] >= 0.5
    assert found[1, 759, 1] < 0.5
    assert found[1, 819, 1] >= 0.5
    card = opened("a").card
    part = next(part for part in card.state.parts if part.name == "0.flat")
    assert state[:, part.offset : part.offset + 3].tolist() == [[500, 1, 701], [500, 30, 672]]


@BOTH
def test_it_says_when_it_is_warm(sizes: Sizes) -> None:
    """And is silent before."""
    found, _ = walked(opened("a", sizes=sizes), [ordinary(310, 1, seed=1)])
    assert found[0, :, 3].tolist() == [0.0] * 200 + [1.0] * 110
    assert found[0, :200, 1:3].max() == 0
    assert found[0, 200:, 1].max() > 0


def test_records_say_whether_it_is_warm(tmp_path: Path) -> None:
    data, out = tmp_path / "events.jsonl", tmp_path / "out.jsonl"
    data.write_text("".join(f'{{"time":{START_MS + row},"a":{row % 7}}}\n' for row in range(310)))
    columns = {"key": None, "timestamp": "time", "dead_letters": None}
    assert score_file("builtin:anomaly:a", str(data), out=str(out), no_key=True, **columns) == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["warm"] for record in records] == [False] * 200 + [True] * 110
    assert list(records[0])[2:6] == ["score", "prediction", "warm", "alert"]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (
            "builtin:anomaly",
            "name the numbers that it is to watch: builtin:anomaly:FIELD or builtin:anomaly:FIELD,FIELD",
        ),
        ("builtin:anomaly:", "give 1 to 64 different names of fields"),
        ("builtin:anomaly:a,,b", "give 1 to 64 different names of fields"),
        ("builtin:anomaly:a, a", "give 1 to 64 different names of fields"),
        ("builtin:anomaly:" + ",".join(f"f{number}" for number in range(65)), "give 1 to 64 different names of fields"),
        ("builtin:demo:amount", "takes no names of fields: it has "),
        ("builtin:none:amount", "there is no such model in the package; use one of: builtin:anomaly"),
    ],
)
def test_names_of_fields_that_cannot_be(reference: str, message: str) -> None:
    with pytest.raises(CannotServe, match=message):
        load_model(reference)


def test_the_card_of_several_fields(tmp_path: Path) -> None:
    model = load_model("builtin:anomaly:cpu,disk.used, memory")
    assert [feature.name for feature in model.card.features] == ["cpu", "disk.used", "memory"]
    assert model.card.state.size == KEY_FLOATS + 3 * CHANNEL_FLOATS
    assert model.card.fingerprint not in {load_model(f"builtin:anomaly:{names}").card.fingerprint for names in "ab"}
    copied = tmp_path / "copy.onnx"
    copied.write_bytes(model.content)
    assert load_model(copied).card == model.card, "it is a model file like any other"


def test_a_daemon_serves_it_and_verify_agrees() -> None:
    """Through a crash, whose states are those of the state topic."""
    world = VerifyWorld(Path("builtin:anomaly:amount"), state={"checkpoint_interval": "5s"})
    fill(world, events(150, bad=0.0))
    daemon = world.start(world.onnx_step())
    world.settle()
    world.now_s += 10
    for _ in range(3):
        world.step(daemon)
    world.kill(daemon)
    fill(world, events(150, seed=2, bad=0.0))
    world.serve()
    done = world.verify()
    assert done.exit_code == 0, done.summary()
    assert done.summary()["predictions"] == 300
