"""The stages of one file for `lstmstream score`: each batch goes through all of them, in the order of the rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from lstmstream.config import Config, Stage, load_stages
from lstmstream.errors import CannotServe
from lstmstream.model import Model
from lstmstream.records import RecordBatch
from lstmstream.serve.engine import Engine, Result
from lstmstream.serve.factory import make_engine
from lstmstream.serve.score_input import KeyAndTime, score_config, with_key_and_time
from lstmstream.serve.scorer import Timer
from lstmstream.serve.step_model import StepModel


def configs_to_score(config_or_model: str, stage: str | None) -> list[Config]:
    """The configurations of the stages, each of which reads the events of the one before; one without stages.

    Raises CannotServe where the stages are not in one line.
    """
    is_config = Path(config_or_model).suffix in {".yaml", ".yml"}
    stages = load_stages(Path(config_or_model)) if is_config and stage is None else ()
    if not stages:
        return [score_config(config_or_model, stage)]
    problems = [
        f"stages: {second.name} does not read the output.events of {first.name}, and score takes stages in one line;"
        " give --stage NAME to score one"
        for first, second in pairwise(stages)
        if not _follows(first, second)
    ]
    if problems:
        raise CannotServe(*problems)
    return [one.config for one in stages]


def _follows(first: Stage, second: Stage) -> bool:
    return first.config.output.events.topic == second.config.input.topic


def make_engines(
    configs: list[Config], loaded: Sequence[tuple[Model, StepModel]], columns: KeyAndTime, timer: Timer
) -> list[Engine]:
    """The engine of each stage; `configs` get the key and time that count.

    A stage without a key field has its events keyed as the one before writes them. Raises CannotServe.
    """
    engines = []
    for number, (model, step) in enumerate(loaded):
        if number:
            before = configs[number - 1]
            key = configs[number].input.key or before.output.events.key or before.input.key
            columns = KeyAndTime(key, no_key=key is None, no_timestamp=columns.no_timestamp)
        configs[number] = with_key_and_time(configs[number], model, columns)
        engines.append(make_engine(configs[number], step, from_file=True, timer=timer))
        engines[-1].scorer.states.open(0)
    return engines


def process(engines: Sequence[Engine], records: RecordBatch) -> Iterator[Result]:
    """The result of each stage; the states are committed. An event keeps its row."""
    for number, engine in enumerate(engines):
        result = engine.process(records)
        engine.commit()
        yield result
        written = result.outputs.events
        if written is None or number == len(engines) - 1:
            return
        records = RecordBatch(
            records.topic,
            np.zeros(len(written), dtype=np.int64),
            records.offsets[result.predictions.index],
            written.timestamps,
            written.keys,
            written.values,
            written.headers,
        )
