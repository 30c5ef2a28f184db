"""Random sequences of events, networks with random weights, and the step model run event by event."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from lstmstream.serve.step import OnnxStep
from lstmstream.serve.step_model import StepInput
from lstmstream.train.export import Category, Elapsed, FeatureEncoder, History, Number
from lstmstream.train.export.named_cells import NAMED_CELLS
from lstmstream.train.network import Architecture, Classes, TaskHead, TorchNetwork
from tests.train.reference_encoder import encode_in_float64, history_in_float64

ELEVEN_DAYS_S = 11 * 86400.0
LSTM_AND_GRU = [Architecture("lstm", 2, 6), Architecture("gru", 2, 6), Architecture("lstm", 2, 6, projection=4)]
NAMED = [Architecture(cell, 2, 6) for cell in NAMED_CELLS]
RELU = [replace(architecture, activation="relu") for architecture in LSTM_AND_GRU]
MIN_LENGTH, MAX_LENGTH = 3, 30  # events of a key


def encoder_of_everything(limit: float = 1e4) -> FeatureEncoder:
    """Numbers with and without log and flag, a vocabulary, buckets, elapsed, both clocks."""
    return FeatureEncoder(
        numbers=(
            Number("amount", centre=1.0, scale=1.5, log=True, flag_missing=True),
            Number("balance", centre=-2.0, scale=5.0),
            Number("age", centre=4.0, scale=3.0, flag_missing=True),
            Number("distance", scale=0.7, log=True),
        ),
        categories=(
            Category("shop", np.zeros((4, 3), np.float32), vocabulary=("a", "b", "c")),
            Category("terminal", np.zeros((18, 2), np.float32), buckets=17),
        ),
        elapsed=Elapsed(3.0, 2.0),
        hour_of_day=True,
        day_of_week=True,
        limit=limit,
    )


def with_history(encoder: FeatureEncoder, pairs: Sequence[tuple[int, float]]) -> FeatureEncoder:
    """The encoder with a history of these numbers and windows in seconds, scaled somehow."""
    columns, windows = zip(*pairs, strict=True)
    count = len(pairs)
    generator = np.random.default_rng(count)
    centre = np.append(generator.normal(size=3 * count), np.zeros(count)).astype(np.float32)
    scale = generator.uniform(0.5, 2, 4 * count).astype(np.float32)
    return replace(encoder, history=History(columns, windows, tuple(centre.tolist()), tuple(scale.tolist())))


def encoder_of_numbers(*, log: bool = False) -> FeatureEncoder:
    """Numbers and nothing else."""
    return FeatureEncoder(tuple(Number(name, centre=0.5, scale=2.0, log=log) for name in ("amount", "balance", "age")))


@dataclass(frozen=True)
class Sequences:
    """K keys of `lengths` events each, padded to T."""

    lengths: np.ndarray  # [K]
    x: np.ndarray  # [K, T, F]
    codes: np.ndarray  # [K, T, C]
    timestamp: np.ndarray  # [K, T]
    elapsed: np.ndarray  # [K, T]

    def tensors(self, encoder: FeatureEncoder) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """dense, codes, missing, lengths: what `predict_sequences` takes, encoded in float64."""
        keys, steps = self.elapsed.shape
        flat = {"x": self.x.reshape(keys * steps, -1), "elapsed": self.elapsed.ravel()}
        if encoder.hour_of_day or encoder.day_of_week:
            flat["timestamp"] = self.timestamp.ravel()
        flat["categories"] = np.zeros((keys * steps, len(encoder.categories)), np.int64)
        plain = replace(encoder, history=None)
        dense = encode_in_float64(plain, flat)[:, : plain.dense_width].reshape(keys, steps, -1)
        if encoder.history is not None:
            pairs = zip(self.x, self.elapsed, strict=True)
            history = np.stack([history_in_float64(encoder, x, elapsed) for x, elapsed in pairs])
            dense = np.concatenate([dense, history], axis=-1)
        dense = dense.astype(np.float32)
        missing = torch.from_numpy(np.isnan(self.x))
        return torch.from_numpy(dense), torch.from_numpy(self.codes), missing, torch.from_numpy(self.lengths)


def random_sequences(encoder: FeatureEncoder, keys: int, seed: int = 0) -> Sequences:
    """A fifth of the values is missing; gaps are log-uniform from 1 ms to 11 days."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(MIN_LENGTH, MAX_LENGTH + 1, keys)
    steps = int(lengths.max())
    x = generator.normal(scale=5, size=(keys, steps, len(encoder.numbers)))
    x[generator.random(x.shape) < 0.2] = np.nan
    tops = [len(category.table) for category in encoder.categories]
    gaps = np.exp(generator.uniform(np.log(1e-3), np.log(ELEVEN_DAYS_S), (keys, steps)))
    milliseconds = np.round(gaps * 1000).astype(np.int64)
    elapsed = (milliseconds / 1000).astype(np.float32)
    elapsed[:, 0] = np.nan
    start = generator.integers(1_500_000_000_000, 1_700_000_000_000, (keys, 1))
    return Sequences(
        lengths,
        x.astype(np.float32),
        generator.integers(0, tops, (keys, steps, len(tops))),
        start + np.cumsum(milliseconds, axis=1),
        elapsed,
    )


def encode_random(encoder: FeatureEncoder, keys: int = 9, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """dense, codes, missing, lengths of random sequences."""
    return random_sequences(encoder, keys, seed).tensors(encoder)


def random_torch_network(
    encoder: FeatureEncoder, architecture: Architecture, task_head: TaskHead, seed: int = 0
) -> TorchNetwork:
    """A network all of whose weights matter.

    A relu LSTM is unbounded, and with larger weights its values grow until float32 itself is coarser than 1e-5 (both
    sides are then as far from float64 as from each other): three quarters of them keep it in the range of trained ones.
    """
    torch.manual_seed(seed)
    network = TorchNetwork(encoder, architecture, task_head)
    with torch.no_grad():
        for name, weights in network.named_parameters():
            spread = {"layers": 0.1, "embeddings": 0.4, "head": 1.0 if isinstance(task_head, Classes) else 0.4}
            weights.add_(torch.randn_like(weights) * spread[name.split(".")[0]])
            if name.endswith("weight_hr_l0"):
                weights.add_(torch.randn_like(weights) * 0.5)  # or little is left after three layers
            elif name.startswith("layers") and architecture.activation == "relu" and "bias" not in name:
                weights.mul_(0.75)
    return network.eval()


def serve(step: OnnxStep, events: Sequences) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Score [K, T], prediction [K, T, P], NaN after a key's last event; each part of the state after its last."""
    keys, steps = events.elapsed.shape
    card = step.card
    state = np.tile(np.array(card.state.initial, np.float32), (keys, 1))
    score, prediction = np.full((keys, steps), np.nan, np.float32), None
    for now in range(steps):
        rows = np.flatnonzero(events.lengths > now)
        given = StepInput(
            np.ascontiguousarray(events.x[rows, now]),
            np.ascontiguousarray(events.codes[rows, now]),
            np.ascontiguousarray(events.timestamp[rows, now]),
            np.ascontiguousarray(events.elapsed[rows, now]),
            state[rows],
        )
        out = step.step(given)
        assert out.prediction is not None
        if prediction is None:
            prediction = np.full((keys, steps, out.prediction.shape[1]), np.nan, np.float32)
        score[rows, now], prediction[rows, now], state[rows] = out.score, out.prediction, out.state
    assert prediction is not None
    parts = {part.name: state[:, part.offset : part.offset + int(np.prod(part.shape))] for part in card.state.parts}
    return score, prediction, parts
