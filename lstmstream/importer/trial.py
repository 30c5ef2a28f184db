"""Writes an imported model once it has passed what the daemon will ask of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lstmstream.errors import CannotServe
from lstmstream.importer.examples import Examples
from lstmstream.importer.features import FeatureNames
from lstmstream.model import load_model, write_model
from lstmstream.model.card import Card
from lstmstream.serve.growth import find_growth
from lstmstream.serve.step import OnnxStep
from lstmstream.whole_file import check_replaceable, remedy_of

_WALKED_EVENTS = 2048  # in search of a state that grows without bound


def write_checked(
    out: Path, content: bytes, card: Card, *, growth: GrowthCheck | None = None, examples: Examples | None = None
) -> tuple[Card, list[str]]:
    """Writes the model to `out` once the daemon's own load has accepted it. Raises CannotServe.

    With `growth` a state that grows without bound is refused too, and with `examples` a model that does not reproduce
    them. Returns the card with its fingerprint, and lines for the report.
    """
    check_out(out)
    trial = out.with_name(f".{out.name}.{os.getpid()}.trial")
    try:
        card = write_model(trial, content, card)
        step = OnnxStep(load_model(trial), device="cpu")
        if growth is not None:
            growth.check(step)
        lines = [] if examples is None else [examples.report_line(examples.check(step))]
        trial.replace(out)
    except CannotServe as error:
        raise CannotServe(*(problem.replace(str(trial), str(out)) for problem in error.problems)) from error
    except OSError as error:
        raise CannotServe(f"--out {out}: cannot be written ({error.strerror}){remedy_of(error)}") from error
    finally:
        trial.unlink(missing_ok=True)
    return card, lines


def check_out(out: Path) -> None:
    """Raises CannotServe where no model file can be written to `out`. Known before the model is converted."""
    if not out.parent.is_dir():
        raise CannotServe(f"--out {out}: the folder {out.parent} does not exist")
    try:
        check_replaceable(out)
    except OSError as error:
        raise CannotServe(f"--out {out}: cannot be written ({error.strerror})") from error


@dataclass(frozen=True, slots=True)
class GrowthCheck:
    """Refuses a state that grows without bound: after some events such a key would get no more predictions."""

    file: str  # the original
    names: FeatureNames
    remedy: str

    def check(self, step: OnnxStep) -> None:
        """Raises CannotServe where the state grows on events in the range of the features."""
        centre, scale = self.names.scaling()
        found = find_growth(step, events=_WALKED_EVENTS, centre=centre, scale=scale)
        if found is not None:
            raise CannotServe(
                f"import {self.file}: {found}. On a long stream each further event of such a key would be a dead"
                f" letter; {self.remedy}. If all keys are short, or values are far smaller than 1, --allow-growth"
                " accepts it"
            )
