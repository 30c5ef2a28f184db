"""Gathers what the report tells: the model's answers beside those of the baselines, and what is known of the data."""

from __future__ import annotations

import numpy as np

from lstmstream.train.finish import Finished
from lstmstream.train.fit import Fitted
from lstmstream.train.history import features
from lstmstream.train.history.read import Floats, Ints
from lstmstream.train.history.split import NAMES, TEST, TRAIN, VALIDATION
from lstmstream.train.measure.baselines import baselines
from lstmstream.train.measure.judge import rows_that_count
from lstmstream.train.measure.verdict import compare
from lstmstream.train.prepare import Prepared
from lstmstream.train.report.report import Report
from lstmstream.train.report.summary import part_facts, summarise


def gather(prepared: Prepared, fitted: Fitted, finished: Finished, config_text: str, weights: int) -> Report:
    """The report. `weights` is the number of the network's parameters."""
    config, events, parts = prepared.config, prepared.events, prepared.parts
    judged = finished.validation if finished.test is None or not len(finished.test) else finished.test
    part = VALIDATION if judged is finished.validation else TEST
    rows = rows_that_count(prepared.goal, events, finished.score, parts.of == part)

    def dense(wanted: Ints) -> Floats:
        return features.encode(
            prepared.encoder,
            np.asarray(events.x[wanted]),
            np.asarray(events.elapsed[wanted]),
            np.asarray(events.timestamp[wanted]),
        )

    learned = np.flatnonzero(prepared.counted[NAMES[TRAIN]]) if config.task == "classify" else parts.rows(TRAIN)
    others = baselines(prepared.goal, events, judged, rows, training=learned, dense=dense)
    cell = config.model.cell.upper()
    card = finished.card
    return Report(
        name=config.name,
        version=config.version,
        task=config.task,
        cell=cell,
        config=config_text,
        keys=events.keys,
        summary=summarise(events, card.features),
        parts=[part_facts(name, events, parts.rows(one)) for one, name in NAMES.items()],
        history=fitted.history,
        chosen_epoch=fitted.best_epoch,
        validation=finished.validation,
        test=finished.test,
        metrics=finished.metrics,
        baselines=others,
        verdict=compare(judged, others, called=cell, seed=config.training.seed),
        threshold=finished.threshold,
        threshold_rule=finished.rule,
        facts={
            "network": f"{config.model.layers} x {cell}({config.model.hidden}), {weights:,} weights",
            "state": f"{card.state.size} values, {4 * card.state.size:,} bytes a key",
            "fingerprint": card.fingerprint,
            "training ended": fitted.ended,
            "split": parts.rule,
            "file against network": f"{finished.difference:.1e} apart at most",
            "data (SHA-256)": events.sha256,
        },
        warnings=prepared.warnings,
    )
