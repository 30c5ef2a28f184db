"""What a model is tried on at load: a warm-up, and that a row's output does not depend on the rows beside it.

The promise of the same predictions as offline, bit for bit, stands on the second. Some operators of ONNX Runtime do not
keep it at every width (Log, Sin, Cos, Softplus and Atan on narrow rows), so each model is tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lstmstream.config import Config
from lstmstream.errors import CannotServe
from lstmstream.model import Card, with_all_outputs
from lstmstream.model.file import BUILTIN
from lstmstream.records import Floats
from lstmstream.serve.step_model import StepInput

if TYPE_CHECKING:
    import onnxruntime as ort

    from lstmstream.serve.step import OnnxStep

GPU_TOLERANCE = 1e-5
CHECKED_BATCHES = ((0, 1), (1, 3), (2, 7), (5, 64))  # (first row, rows)
CHECKED_ROWS = 5 + 64


def threshold_warning(config: Config, card: Card) -> str | None:
    """What is wrong with a threshold above every score that the model can have; None where nothing is known to be.

    Of models that this package made the scores are known: probabilities, and anomaly scores, which are scaled to 1.
    """
    threshold = card.threshold if config.output.threshold is None else config.output.threshold
    made_here = config.model.startswith(BUILTIN) or "fields" in card.training
    if threshold is None or threshold <= 1 or not made_here or card.task not in {"classify", "anomaly"}:
        return None
    return (
        f"output.threshold: {threshold:g} is above every score of model {card.name}, which are from 0 to 1, so that"
        " nothing is an alert; set it to at most 1"
    )


def warm_up(step: OnnxStep) -> None:
    """Zeros and large numbers in, finite numbers of the card's shapes out. Raises CannotServe."""
    for size in (0.0, 1e6, -1e6):
        given = probe(step.card, rows=2)._replace(
            x=np.full((2, step.card.number_columns), size, dtype=np.float32),
            categories=np.array([[0] * len(step.card.categories), _highest_codes(step.card)], dtype=np.int64),
            elapsed=np.array([np.nan, abs(size)], np.float32),
        )
        try:
            out = step.step(given)
            step.step(given.rows(0, 1))
        except Exception as error:
            raise CannotServe(f"model {step.model.path}: a trial step fails: {error}") from error
        shapes = [out.state.shape == (2, step.card.state.size), out.score.shape == (2,)]
        shapes.append(out.prediction is None or (out.prediction.ndim == 2 and len(out.prediction) == 2))
        if not all(shapes):
            raise CannotServe(
                f"model {step.model.path}: for 2 rows it returns state_out {out.state.shape},"
                f" score {out.score.shape}, prediction {None if out.prediction is None else out.prediction.shape};"
                " the card says otherwise"
            )
        if not out.finite().all():
            raise CannotServe(
                f"model {step.model.path}: its output for features of {size:g} is not finite; train or export it again"
            )


def check_rows_are_independent(step: OnnxStep) -> None:
    """A row's output must not depend on the rows beside it. Raises CannotServe with the first tensor that does."""
    given = probe(step.card, rows=CHECKED_ROWS)
    given = given._replace(state=step.step(given).state)  # states that the model can be in
    first = _first_difference(step, step.session, step.outputs, given)
    if first is None:
        return
    content, names = with_all_outputs(step.model.content)
    tensor = _first_difference(step, step.open_session(content), names, given) or first
    raise CannotServe(
        f"model {step.model.path}: tensor {tensor!r} of a row changes with the rows beside it, so the result"
        " depends on how events fall into batches; pad that operator's columns to a multiple of 16, or use"
        " delivery: at_least_once"
    )


def _first_difference(
    step: OnnxStep, session: ort.InferenceSession, names: Sequence[str], given: StepInput
) -> str | None:
    """The first output whose row differs between a batch and the row alone; None if all agree."""
    alone = [session.run(names, step.feed(given.rows(i, 1))) for i in range(CHECKED_ROWS)]
    together = [(start, session.run(names, step.feed(given.rows(start, n)))) for start, n in CHECKED_BATCHES]
    for position, name in enumerate(names):
        for start, outputs in together:
            batch = outputs[position]
            count = next(n for first, n in CHECKED_BATCHES if first == start)
            expected = [alone[start + i][position] for i in range(count)]
            if not all(_same(step, batch, count, i, row) for i, row in enumerate(expected)):
                return name
    return None


def _same(step: OnnxStep, batch: Floats, count: int, i: int, alone: Floats) -> bool:
    """Row i of a batch against the row alone; the rows' axis is the one that has `count` where the row has 1."""
    axes = [axis for axis, (n, one) in enumerate(zip(batch.shape, alone.shape, strict=True)) if (n, one) == (count, 1)]
    if not axes:
        return count == 1 or batch.shape == alone.shape  # a constant: no row in it
    return same_values(step, np.take(batch, [i], axis=axes[0]), alone)


def same_values(step: OnnxStep, one: Floats, other: Floats) -> bool:
    """Bit for bit on the CPU, nearly on a GPU."""
    if step.device == "cuda" and one.shape == other.shape:
        near = np.isclose(one, other, rtol=GPU_TOLERANCE, atol=GPU_TOLERANCE, equal_nan=True)
        return bool(near.all())
    return one.tobytes() == other.tobytes()


def probe(card: Card, *, rows: int) -> StepInput:
    """Plausible input of fixed content, with missing values and first events among it."""
    rng = np.random.default_rng(20260105)
    x = (rng.standard_normal((rows, card.number_columns)) * 10.0 ** rng.integers(-1, 4, (rows, 1))).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = np.nan
    highest = np.array(_highest_codes(card), dtype=np.int64)
    categories = rng.integers(0, highest + 1, (rows, len(highest)), dtype=np.int64)
    elapsed = (10.0 ** rng.uniform(-3, 6, rows)).astype(np.float32)
    elapsed[rng.random(rows) < 0.1] = np.nan
    timestamp = rng.integers(0, 2_000_000_000_000, rows, dtype=np.int64)
    state = np.tile(np.array(card.state.initial, dtype=np.float32), (rows, 1))
    return StepInput(x, categories, timestamp, elapsed, state)


def _highest_codes(card: Card) -> list[int]:
    return [feature.buckets or len(feature.vocabulary or ()) for feature in card.categories]
