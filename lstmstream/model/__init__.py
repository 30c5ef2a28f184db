"""A model file and its card: reading, checking and writing. The only bridge from training to serving."""

from lstmstream.model.card import FORMAT, Card, Feature, StatePart, StateSpec
from lstmstream.model.file import (
    CARD_KEY,
    MAX_BYTES,
    Model,
    describe,
    fingerprint,
    inspect_json,
    load_model,
    write_model,
)
from lstmstream.model.onnx_proto import with_all_outputs

__all__ = [
    "CARD_KEY", "FORMAT", "MAX_BYTES", "Card", "Feature", "Model", "StatePart", "StateSpec",
    "describe", "fingerprint", "inspect_json", "load_model", "with_all_outputs", "write_model",
]  # fmt: skip
