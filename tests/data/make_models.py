"""Writes the models beside this file: `python tests/data/make_models.py`. Needs onnx; the tests that load them do not.

Run it again, and commit what it wrote, when the model format or tests/models.py changes.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # tests/models.py

from models import poisoned_model, random_model  # noqa: E402

ALL_KINDS = {
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
