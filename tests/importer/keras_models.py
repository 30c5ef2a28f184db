# ruff: noqa: E501 -- one model, one line
"""Makes .keras files and ONNX exports with Keras on TensorFlow, and writes down what Keras itself answers.

Run as a program in a process of its own: `python keras_models.py FOLDER`. See torch_models.py for the .npz files.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import keras
import numpy as np
from keras import layers as L  # noqa: N812

F, T = 3, 6


def chain(*layers: Any, length: int | None = None) -> Any:
    return keras.Sequential([keras.Input((length, F)), *layers])


def stateful(batch: int, *layers: Any) -> Any:
    return keras.Sequential([keras.Input((1, F), batch_size=batch), *layers])


def functional() -> Any:
    start = keras.Input((None, F))
    x = L.Dense(5, activation="tanh")(start)
    x = L.LSTM(7, return_sequences=True)(x)
    x = L.LSTM(4)(x)
    return keras.Model(start, L.Dense(3, activation="softmax")(x))


def branched() -> Any:
    start = keras.Input((None, F))
    one = L.LSTM(4)(start)
    two = L.GRU(4)(start)
    return keras.Model(start, L.Dense(1)(L.Concatenate()([one, two])))


def encoder_decoder() -> Any:
    return chain(L.LSTM(5), L.RepeatVector(T), L.LSTM(4, return_sequences=True), L.Dense(1), length=T)


def normalised() -> Any:
    norm = L.Normalization()
    norm.adapt(np.random.default_rng(1).normal(3, 5, (50, T, F)).astype("float32"))
    return chain(norm, L.LSTM(6), L.Dense(1))


def batch_normed() -> Any:
    model = chain(
        L.BatchNormalization(), L.LSTM(6, return_sequences=True), L.BatchNormalization(scale=False), L.Dense(2)
    )
    generator = np.random.default_rng(2)
    for weight in model.weights:
        if "seed" not in weight.name:
            weight.assign(generator.uniform(0.5, 1.5, weight.shape))
    return model


def saved() -> dict[str, Any]:
    """Files of Keras' own format."""
    return {
        "lstm": chain(L.LSTM(8), L.Dense(1, activation="sigmoid")),
        "lstm_whole": chain(L.LSTM(8, return_sequences=True), L.Dense(2)),
        "lstm_relu": chain(L.LSTM(8, activation="relu"), L.Dense(1)),
        "lstm_hard": chain(L.LSTM(8, recurrent_activation="hard_sigmoid", activation="softsign"), L.Dense(1)),
        "lstm_linear": chain(L.LSTM(8, activation="linear", use_bias=False), L.Dense(1, use_bias=False)),
        "stacked": chain(L.LSTM(8, return_sequences=True), L.Dropout(0.3), L.LSTM(5, return_sequences=True), L.LSTM(4), L.Dense(1)),
        "gru_after": chain(L.GRU(7), L.Dense(1)),
        "gru_before": chain(L.GRU(7, reset_after=False), L.Dense(4, activation="relu"), L.Dense(1)),
        "gru_stacked": chain(L.GRU(6, return_sequences=True), L.GRU(5, return_sequences=True), L.TimeDistributed(L.Dense(1))),
        "simple": chain(L.SimpleRNN(6), L.Dense(1, activation="softplus")),
        "simple_relu": chain(L.SimpleRNN(6, activation="relu", return_sequences=True), L.Dense(1, activation="tanh")),
        "dropouts": chain(L.LSTM(6, dropout=0.2, recurrent_dropout=0.2), L.Dense(1)),
        "norms": chain(L.Rescaling(0.1, offset=0.5), L.Dense(5), L.LayerNormalization(), L.LSTM(6), L.LayerNormalization(scale=False), L.Dense(1)),
        "normalised": normalised(),
        "batch_normed": batch_normed(),
        "activations": chain(L.LSTM(6), L.Activation("elu"), L.Dense(4), L.ReLU(), L.Dense(3), L.Softmax()),
        "functional": functional(),
        "fixed_length": chain(L.LSTM(5), L.Dense(1), length=T),
        "stateful": keras.Sequential([keras.Input((None, F), batch_size=4), L.LSTM(5, stateful=True), L.Dense(1)]),
        "stateful_one": stateful(1, L.LSTM(5, stateful=True), L.Dense(1)),
        "stateful_stacked": stateful(1, L.LSTM(8, return_sequences=True, stateful=True), L.LSTM(4, stateful=True), L.Dense(1)),
        "stateful_gru": stateful(32, L.GRU(6, stateful=True), L.Dense(1)),
        "stateful_simple": stateful(1, L.SimpleRNN(6, stateful=True, return_sequences=True), L.Dense(1)),
        "stateful_cell": stateful(1, L.RNN(L.LSTMCell(5), stateful=True, return_sequences=True), L.RNN(L.SimpleRNNCell(4), stateful=True), L.Dense(1)),
        "cells": chain(L.RNN(L.GRUCell(6, reset_after=False), return_sequences=True), L.GRU(4), L.Dense(1)),
        # --- what cannot be a step, or cannot be read ---
        "one_event": chain(L.LSTM(5), L.Dense(1), length=1),
        "half_stateful": stateful(1, L.LSTM(8, return_sequences=True, stateful=True), L.LSTM(4), L.Dense(1)),
        "bidirectional": chain(L.Bidirectional(L.LSTM(5)), L.Dense(1)),
        "backwards": chain(L.LSTM(5, go_backwards=True), L.Dense(1)),
        "masking": chain(L.Masking(), L.LSTM(5), L.Dense(1)),
        "pooled": chain(L.LSTM(5, return_sequences=True), L.GlobalAveragePooling1D(), L.Dense(1)),
        "convolved": chain(L.Conv1D(4, 3, padding="causal"), L.LSTM(5), L.Dense(1)),
        "flattened": chain(L.LSTM(5, return_sequences=True), L.Flatten(), L.Dense(1), length=T),
        "encoder_decoder": encoder_decoder(),
        "branched": branched(),
        "embedded": keras.Sequential([keras.Input((None,), dtype="int32"), L.Embedding(9, 3), L.LSTM(4), L.Dense(1)]),
        "half": chain(L.LSTM(5, dtype="mixed_float16"), L.Dense(1)),
        "odd_activation": chain(L.LSTM(5, activation="gelu"), L.Dense(1)),
    }  # fmt: skip


def exported() -> dict[str, Any]:
    """Files that Keras exports to ONNX."""
    return {
        "onnx_lstm": chain(L.LSTM(8), L.Dense(1, activation="sigmoid")),
        "onnx_whole": chain(L.Dense(4, activation="relu"), L.LSTM(8, return_sequences=True), L.Dense(2)),
        "onnx_stacked": chain(L.LSTM(8, return_sequences=True), L.LSTM(5), L.Dense(3, activation="softmax")),
        "onnx_relu": chain(L.LSTM(8, activation="relu"), L.Dense(1)),
        "onnx_fixed": chain(L.LSTM(5, return_sequences=True), L.LSTM(4), L.Dense(1), length=T),
        "onnx_gru": chain(L.GRU(5), L.Dense(1)),
        "onnx_masking": chain(L.Masking(), L.LSTM(5), L.Dense(1)),
        "onnx_backwards": chain(L.LSTM(5, go_backwards=True), L.Dense(1)),
        "onnx_bidirectional": chain(L.Bidirectional(L.LSTM(5)), L.Dense(1)),
        "onnx_pooled": chain(L.LSTM(5, return_sequences=True), L.GlobalAveragePooling1D(), L.Dense(1)),
        "onnx_convolved": chain(L.Conv1D(4, 3, padding="causal"), L.LSTM(5), L.Dense(1)),
    }


def record(path: Path, model: Any) -> None:
    """What Keras answers, of each prefix of random sequences."""
    generator = np.random.default_rng(3)
    fixed = model.input_shape[1]
    if fixed == 1:
        record_calls(path, model)
        return
    kept: dict[str, np.ndarray] = {}
    for number, length in enumerate([fixed, fixed] if fixed else [5, 9]):
        x = generator.normal(size=(4, length, F)).astype("float32")
        answers, positions = [], []
        for event in range(length):
            if fixed and event + 1 < length:
                continue
            for layer in model.layers:
                if getattr(layer, "stateful", False):
                    layer.reset_states()
            out = np.asarray(model(x[:, : event + 1]))
            answers.append(out[:, -1] if out.ndim == 3 else out)
            positions.append(event)
        kept |= {f"x{number}": x, f"y{number}": np.stack(answers, 1), f"at{number}": np.array(positions)}
    np.savez(path, **kept)  # type: ignore[arg-type]  # numpy's stubs take the first for allow_pickle


def record_calls(path: Path, model: Any) -> None:
    """What Keras answers to one event per call, its layers going on from call to call."""
    kept: dict[str, np.ndarray] = {}
    for number in (0, 1):
        x = np.random.default_rng(number).normal(size=(model.input_shape[0] or 2, 20, F)).astype("float32")
        for layer in model.layers:
            if getattr(layer, "stateful", False):
                layer.reset_states()
        answers = [np.asarray(model(x[:, event : event + 1])).reshape(len(x), -1) for event in range(20)]
        kept |= {f"x{number}": x, f"y{number}": np.stack(answers, 1), f"at{number}": np.arange(20)}
    np.savez(path, **kept)  # type: ignore[arg-type]  # numpy's stubs take the first for allow_pickle


def main(folder: Path) -> None:
    keras.utils.set_random_seed(0)
    for name, model in saved().items():
        model.save(folder / f"{name}.keras")
        if name not in {"embedded", "half"}:
            record(folder / f"{name}.npz", model)
    for name, model in exported().items():
        record(folder / f"{name}.npz", model)
        model.export(str(folder / f"{name}.onnx"), format="onnx", verbose=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
