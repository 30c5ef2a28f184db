"""Writes the models beside this file: `python -m tests.data.make_models`. Needs onnx; the tests that load them do not.

Run it again, and commit what it wrote, when the model format or tests/models.py changes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.models import poisoned_model, random_model

HERE = Path(__file__).parent

ALL_KINDS: dict[str, Any] = {
    "numbers": ("amount", "merchant.risk"),
    "categories": {"channel": ("web", "app", "pos"), "device.id": 16},
    "clock": True,
}


def main() -> None:
    """`small` has every kind of input; `many` has three outputs and two layers; the others fail where x[0] is 666."""
    random_model(HERE, file="small.onnx", name="small", version="3", **ALL_KINDS)
    random_model(
        HERE, file="many.onnx", name="many", threshold=None, layers=2, hidden=4, outputs=3, elapsed=False, seed=1
    )
    for where in ("score", "state_out", "prediction"):
        poisoned_model(HERE, file=f"poisoned_{where}.onnx", where=where, hidden=4, seed=2)


if __name__ == "__main__":
    main()
