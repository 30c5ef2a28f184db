"""One step of the model for N different keys, on ONNX Runtime.

At load the model is warmed up, and it is checked that a row's answer does not depend on its neighbours in the batch:
promise 1 (the same answers as offline, bit for bit) stands on that.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import: it starts a client that reports to its maker
import onnxruntime as ort

from lstmstream.errors import CannotServe
from lstmstream.model import Card, Model, with_all_outputs
from lstmstream.serve.records import Floats, Ints

GPU_TOLERANCE = 1e-5
_CHECKED_BATCHES = ((0, 1), (1, 3), (2, 7), (5, 64))  # (first row, rows)
_CHECKED_ROWS = 5 + 64


class StepInput(NamedTuple):
    """What N keys meet in one round; `state` is [N, S], one row for each key."""

    x: Floats  # [N, F]
    categories: Ints  # [N, C]
    timestamp: Ints  # [N] milliseconds since 1970 UTC
    elapsed: Floats  # [N] seconds since the key's previous event; NaN on its first
    state: Floats  # [N, S]

    def rows(self, start: int, count: int) -> StepInput:
        """The rows start..start+count."""
        end = start + count
        return StepInput(
            self.x[start:end],
            self.categories[start:end],
            self.timestamp[start:end],
            self.elapsed[start:end],
            self.state[start:end],
        )


class StepOutput(NamedTuple):
    """What the model said of N keys."""

    state: Floats  # [N, S]
    score: Floats  # [N]
    prediction: Floats | None  # [N, P]

    def finite(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """[N] Whether everything in the row is finite."""
        good = np.isfinite(self.score) & np.isfinite(self.state).all(axis=1)
        if self.prediction is not None:
            good &= np.isfinite(self.prediction).all(axis=1)
        return good


class StepModel(Protocol):
    """What the engine needs of a model."""

    card: Card

    def step(self, given: StepInput) -> StepOutput:
        """Move N different keys forward by one event each. Remembers nothing and leaves its arguments untouched."""


class OnnxStep:
    """A StepModel on ONNX Runtime, on the CPU or on CUDA."""

    def __init__(self, model: Model, *, device: str = "auto", threads: int = 1, exact: bool = True) -> None:
        """`exact` refuses a model whose rows depend on the batch. Raises CannotServe."""
        self.card = model.card
        self._model = model
        self._providers = _providers(device)
        self._threads = threads
        self._session = self._open(model.content)
        self.device = "cuda" if self._session.get_providers()[0] == "CUDAExecutionProvider" else "cpu"
        self._inputs = [name for name in StepInput._fields if name in model.graph_inputs]
        self._outputs = ["state_out", "score", *(["prediction"] if "prediction" in model.outputs else [])]
        self._warm_up()
        if exact:
            self._check_rows_are_independent()

    def step(self, given: StepInput) -> StepOutput:
        """See StepModel."""
        state, score, *prediction = self._session.run(self._outputs, self._feed(given))
        return StepOutput(state, score, prediction[0] if prediction else None)

    def _feed(self, given: StepInput) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32 | np.int64]]]:
        return {name: getattr(given, name) for name in self._inputs}

    def _open(self, content: bytes) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Bytes that happen to look like the runtime's own format would pass by all our checks.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        try:
            return ort.InferenceSession(content, options, providers=self._providers)
        except Exception as error:  # onnxruntime raises its own unrelated classes
            raise CannotServe(f"model {self._model.path}: ONNX Runtime cannot load it: {error}") from error

    def _warm_up(self) -> None:
        """Zeros and large numbers in, finite numbers of the card's shapes out."""
        for size in (0.0, 1e6, -1e6):
            given = _probe(self.card, rows=2)._replace(
                x=np.full((2, len(self.card.numbers)), size, dtype=np.float32),
                categories=np.array([[0] * len(self.card.categories), _highest_codes(self.card)], dtype=np.int64),
                elapsed=np.array([np.nan, abs(size)], np.float32),
            )
            try:
                out = self.step(given)
                self.step(given.rows(0, 1))
            except Exception as error:
                raise CannotServe(f"model {self._model.path}: a first step fails: {error}") from error
            shapes = [out.state.shape == (2, self.card.state.size), out.score.shape == (2,)]
            shapes.append(out.prediction is None or (out.prediction.ndim == 2 and len(out.prediction) == 2))
            if not all(shapes):
                raise CannotServe(
                    f"model {self._model.path}: for 2 rows it returns state_out {out.state.shape},"
                    f" score {out.score.shape}, prediction {None if out.prediction is None else out.prediction.shape};"
                    " the card says otherwise"
                )
            if not out.finite().all():
                raise CannotServe(
                    f"model {self._model.path}: its answer to features of {size:g} is not finite;"
                    " train or export it again"
                )

    def _check_rows_are_independent(self) -> None:
        given = _probe(self.card, rows=_CHECKED_ROWS)
        given = given._replace(state=self.step(given).state)  # states that the model can be in
        guilty = self._first_difference(self._session, self._outputs, given)
        if guilty is None:
            return
        content, names = with_all_outputs(self._model.content)
        culprit = self._first_difference(self._open(content), names, given) or guilty
        raise CannotServe(
            f"model {self._model.path}: tensor {culprit!r} of a row changes with the rows beside it, so answers would"
            " depend on how events fall into batches; pad that operator's columns to a multiple of 16, or use"
            " delivery: at_least_once"
        )

    def _first_difference(self, session: ort.InferenceSession, names: Sequence[str], given: StepInput) -> str | None:
        """The first output whose row differs between a batch and the row alone; None if all agree."""
        alone = [session.run(names, self._feed(given.rows(i, 1))) for i in range(_CHECKED_ROWS)]
        together = [(start, session.run(names, self._feed(given.rows(start, n)))) for start, n in _CHECKED_BATCHES]
        for position, name in enumerate(names):
            for start, outputs in together:
                batch = outputs[position]
                count = next(n for first, n in _CHECKED_BATCHES if first == start)
                expected = [alone[start + i][position] for i in range(count)]
                if not all(self._same(batch, count, i, row) for i, row in enumerate(expected)):
                    return name
        return None

    def _same(self, batch: Floats, count: int, i: int, alone: Floats) -> bool:
        """Row i of a batch against the row alone; the rows' axis is the one that has `count` where the row has 1."""
        axes = [
            axis for axis, (n, one) in enumerate(zip(batch.shape, alone.shape, strict=True)) if (n, one) == (count, 1)
        ]
        if not axes:
            return count == 1 or batch.shape == alone.shape  # a constant: no row in it
        mine = np.take(batch, [i], axis=axes[0])
        if self.device == "cuda":
            return bool(np.allclose(mine, alone, rtol=0, atol=GPU_TOLERANCE, equal_nan=True))
        return mine.tobytes() == alone.tobytes()


def _probe(card: Card, *, rows: int) -> StepInput:
    """Plausible input of fixed content, with missing values and first events among it."""
    rng = np.random.default_rng(20260105)
    x = (rng.standard_normal((rows, len(card.numbers))) * 10.0 ** rng.integers(-1, 4, (rows, 1))).astype(np.float32)
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


def _providers(device: str) -> list[str]:
    there = ort.get_available_providers()
    if device == "cpu" or (device == "auto" and "CUDAExecutionProvider" not in there):
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in there:
        raise CannotServe(
            "device.device: cuda asks for a GPU, and this onnxruntime has no CUDA; pip uninstall onnxruntime, then"
            " pip install 'lstmstream[gpu]' (onnxruntime and onnxruntime-gpu cannot stand side by side)"
        )
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]
