"""Builds the report of a training: the evaluation of model and baselines on the same events, and facts of the data."""

from __future__ import annotations

import numpy as np

from lstmstream.evaluation.alignment import evaluated_rows, key_index
from lstmstream.evaluation.baselines import compute_baselines
from lstmstream.evaluation.comparison import compare
from lstmstream.history.split import SPLIT_NAMES, TEST, TRAIN, VALIDATION
from lstmstream.records import Floats, Ints
from lstmstream.train import features
from lstmstream.train.advice import score_note, training_advice
from lstmstream.train.dataset import Dataset
from lstmstream.train.export import FeatureEncoder
from lstmstream.train.finalize import TrainedModel
from lstmstream.train.report.report import Report
from lstmstream.train.report.summary import split_facts, summarize
from lstmstream.train.schema import CELL_TITLES
from lstmstream.train.trainer import Trainer


def build_report(dataset: Dataset, trainer: Trainer, model: TrainedModel, config_text: str) -> Report:
    """The report. `config_text` is the configuration as the user wrote it, without passwords."""
    config, events, split, result = dataset.config, dataset.events, dataset.split, trainer.result
    has_test = model.test is not None and len(model.test) > 0
    evaluated = model.test if model.test is not None and has_test else model.validation
    in_split = split.labels == (TEST if has_test else VALIDATION)
    rows = evaluated_rows(dataset.task_spec, events, model.score, in_split)

    def dense_inputs(rows: Ints) -> Floats:
        """The network's dense inputs [n, D] at the rows [n]."""
        return features.transform_rows(dataset.encoder, events, rows)

    classify = config.task == "classify"
    training = np.flatnonzero(dataset.loss_masks[SPLIT_NAMES[TRAIN]]) if classify else split.rows(TRAIN)
    others = compute_baselines(dataset.task_spec, events, evaluated, rows, training=training, dense=dense_inputs)
    cell = CELL_TITLES[config.model.cell]
    card = model.card
    return Report(
        name=config.name,
        version=config.version,
        task=config.task,
        cell=cell,
        config=config_text,
        keys=events.keys,
        summary=summarize(events, card.features),
        splits=[split_facts(name, events, split.rows(label)) for label, name in SPLIT_NAMES.items()],
        history=result.history,
        chosen_epoch=result.best_epoch,
        validation=model.validation,
        test=model.test,
        metrics=model.metrics,
        baselines=others.evaluated,
        baseline_notes=others.notes,
        comparison=compare(evaluated, others.evaluated, called=cell, seed=config.training.seed),
        threshold=model.threshold,
        threshold_rule=model.threshold_rule,
        stop_reason=result.stop_reason,
        advice=training_advice(
            result,
            config.training,
            batch_size=trainer.batch_size,
            updates=trainer.updates_per_epoch,
            window=config.model.window is not None,
        ),
        event_numbers=1 + rows - events.starts[key_index(events, rows)],
        facts={
            "network": (
                f"{config.model.layers} x {cell}({config.model.hidden}), {trainer.network.parameter_count:,} parameters"
            ),
            "batch": trainer.batch_text,
            "state": f"{card.state.size} values, {4 * card.state.size:,} bytes per key",
            **_history_fact(dataset.encoder),
            "fingerprint": card.fingerprint,
            "training stopped": result.stop_reason,
            "split": split.description,
            "exported file vs. network": f"maximum difference {model.max_difference:.1e}",
            "data (SHA-256)": events.sha256,
        },
        warnings=dataset.warnings,
        score_note=score_note(events.classes, trainer.objective.class_weights) if classify else "",
    )


def _history_fact(encoder: FeatureEncoder) -> dict[str, str]:
    """Which numbers have statistics of the key's earlier events, and their windows; empty where none has."""
    if encoder.history is None:
        return {}
    return {"history": ", ".join(encoder.history_names) + ": count, mean, deviation of the key's earlier events"}
