"""One model over its own states: gather, rounds, apply; then commit or rollback. No I/O, no clock.

`_run_round` is the meaning of a state, line for line as docs/semantics.md has it; a restore replays through the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import numpy as np

from lstmstream.model import Card
from lstmstream.records import Bools, DeadLetter, Floats, Ints, Observations, Predictions, partition_numbers, pick
from lstmstream.serve.alert_memory import AlertRules
from lstmstream.serve.alert_policy import AlertPolicy, Decisions
from lstmstream.serve.fast_rounds import DeviceModel, HostMover, MovedStates, Mover, WatchingMover, run_rounds
from lstmstream.serve.key_limit import KeyLimit
from lstmstream.serve.reasons import Occlusion
from lstmstream.serve.scored import ChangedRows, Scored, joined, joined_changes
from lstmstream.serve.state import BatchStates, StateStore
from lstmstream.serve.step_model import StepInput, StepModel

MAX_FAILURES = 2**16 - 1  # what a state record can hold
GROWN = 1e6  # a state this large is worth a word

Timer = Callable[[str], AbstractContextManager[object]]


def no_timer(_stage: str) -> AbstractContextManager[object]:
    """For a pipeline whose stages nobody times."""
    return nullcontext()


class Meaning(NamedTuple):
    """The settings that decide what a state means, and when a prediction is an alert."""

    ttl_ms: int | None
    late: str  # apply | score | drop
    threshold: float | None  # compared in float32; None never alerts
    reset_after: int = 10  # events in a row that fail on a key's state alone, until it starts with a fresh one
    max_lateness_ms: int | None = None  # behind the partition's stream time
    max_keys: int | None = None  # of a partition


@dataclass(slots=True)
class _RoundOutputs:
    """Arrays over the M observations of a batch, filled round by round."""

    score: Floats
    prediction: np.ndarray[tuple[int, int], np.dtype[np.float32]] | None
    steps: Ints
    answered: Bools
    rejected: dict[int, tuple[str, str]] = field(default_factory=dict)  # observation → (stage, message)
    late_events: int = 0
    expired: int = 0
    resets: int = 0

    @classmethod
    def of(cls, count: int) -> Self:
        """Nothing yet, of M = `count` observations."""
        return cls(
            score=np.empty(count, dtype=np.float32),
            prediction=None,
            steps=np.empty(count, dtype=np.int64),
            answered=np.zeros(count, dtype=np.bool_),
        )


class _Met(NamedTuple):
    """What one observation of each of n slots meets, by lines 4 to 8 of docs/semantics.md."""

    given: StepInput
    seen: Bools  # [n] whether the key has a state that counts
    late: Bools  # [n]
    expired: Bools  # [n]
    afresh: Bools  # [n] whether its state is discarded after too many failures


class Scorer:
    """Scores observations and moves their keys' states. `score` is followed by `commit` or `rollback`."""

    def __init__(
        self,
        model: StepModel,
        meaning: Meaning,
        *,
        timer: Timer = no_timer,
        mover: Mover | None = None,
        reasons: bool = False,
        policy: AlertPolicy | None = None,
    ) -> None:
        """`timer(stage)` is a context manager around each stage, for whoever owns a clock.

        `mover`: where state rows are, and what moves them there; None: as the model has it, else on the host.
        `reasons`: alerts have them. Raises CannotServe where the model cannot give any.
        `policy`: of the alerts; None: all are published.
        """
        self._model = model
        self._ttl_ms = meaning.ttl_ms
        self._late = meaning.late
        self._reset_after = meaning.reset_after
        self._max_lateness_ms = meaning.max_lateness_ms
        self._threshold = None if meaning.threshold is None else np.float32(meaning.threshold)
        self._timer = timer
        self._occlusion = Occlusion(model) if reasons else None
        self._policy = policy
        initial = np.array(model.card.state.initial, dtype=np.float32)
        if mover is None and isinstance(model, DeviceModel):
            mover = model.device_mover()
        self._mover = HostMover(model) if mover is None else mover
        self.states = StateStore(initial, self._mover.backend)
        self._limit = None if meaning.max_keys is None else KeyLimit(meaning.max_keys, self.states)

    @property
    def card(self) -> Card:
        """The model's card."""
        return self._model.card

    @property
    def limits_keys(self) -> bool:
        """Whether keys are evicted (`state.max_keys`)."""
        return self._limit is not None

    @property
    def compares_times(self) -> bool:
        """Whether events are compared with those of all keys (`input.max_lateness`)."""
        return self._max_lateness_ms is not None

    @property
    def alert_rules(self) -> AlertRules | None:
        """By which alerts are published; None: all are."""
        return None if self._policy is None else self._policy.rules

    def score(self, observations: Observations, silent: Bools | None = None) -> Scored:
        """Predictions for M observations, in order per key. The new states can still be rolled back.

        `silent` [M]: those whose prediction is not published, so that it is no alert either; None: none.
        """
        in_time, too_late = self._split_by_time(observations)
        if in_time is not None:
            observations, silent = observations.take(in_time), None if silent is None else silent[in_time]
        if self._limit is None:
            scored = self._score_part(observations, silent)
        else:
            parts: list[Scored] = []
            for part in self._limit.parts(observations):
                some = _part_of(observations, part)
                parts.append(self._score_part(some, None if silent is None else silent[part], more=bool(parts)))
            scored = joined(parts)
        scored.dead_letters[:0] = too_late
        return scored

    def _score_part(self, observations: Observations, silent: Bools | None, *, more: bool = False) -> Scored:
        """`more`: of the batch that the last part has begun."""
        outputs, changed, decided, evicted = self._run_rounds(observations, silent, self._policy, more=more)
        kept = np.flatnonzero(outputs.answered)
        score = outputs.score[kept]
        alert = np.zeros(len(kept), np.bool_) if self._threshold is None else score >= self._threshold
        predictions = Predictions(
            index=observations.index[kept],
            score=score,
            prediction=None if outputs.prediction is None else outputs.prediction[kept],
            alert=alert,
            steps=outputs.steps[kept],
            reasons=self._reasons(observations, kept[alert], score[alert]),
            held_back=None if decided is None else decided.held_back[kept],
            notices=() if decided is None else decided.notices,
        )
        dead_letters = [
            DeadLetter(int(observations.index[i]), stage, message) for i, (stage, message) in outputs.rejected.items()
        ]
        return Scored(predictions, dead_letters, changed, outputs.late_events, outputs.expired, outputs.resets, evicted)

    def replay(
        self,
        observations: Observations,
        silent: Bools | None = None,
        policy: AlertPolicy | None = None,
        *,
        count_hours: bool = False,
        kept: Callable[[Observations], Ints | None] = lambda _observations: None,
        evict: bool = False,
        on_too_late: Callable[[list[DeadLetter]], None] = lambda _letters: None,
    ) -> dict[int, ChangedRows]:
        """Move states by observations that were answered before, skipping for each key what its state has seen.

        The rows that changed, by partition; they are committed. Not while a batch is in flight: that would be ended.
        `policy`: by which they were answered. `silent` [M]: as for `score`. `count_hours`: whether the alerts of the
        partition are counted again too. `kept`: positions of those that count, None: all; the stream time passes them
        all. `evict`: whether keys are evicted, as where the replay begins without any; else the state topic has told
        it already. `on_too_late`: takes the dead letters of what is beyond `input.max_lateness`.
        """
        assert not self.states.in_flight, "a batch is in flight"
        in_time, too_late = self._split_by_time(observations)
        if in_time is not None:
            on_too_late(too_late)
            observations, silent = observations.take(in_time), None if silent is None else silent[in_time]
        if (rows := kept(observations)) is not None:
            observations, silent = observations.take(rows), None if silent is None else silent[rows]
        fresh = self._not_applied(observations)
        if fresh is not None:
            observations, silent = observations.take(fresh), None if silent is None else silent[fresh]
        limit = self._limit if evict else None
        parts = [slice(0, len(observations.index))] if limit is None else limit.parts(observations)
        found: list[dict[int, ChangedRows]] = []
        for part in parts:
            some = _part_of(observations, part)
            quiet = None if silent is None else silent[part]
            _, changed, _, _ = self._run_rounds(
                some, quiet, policy, count_hours=count_hours, more=bool(found), evict=evict
            )
            found.append(changed)
        self.commit()
        if self._limit is None:
            return found[0]
        return {number: self._still_there(number, change) for number, change in joined_changes(found).items()}

    def _still_there(self, partition: int, changed: ChangedRows) -> ChangedRows:
        """Without the rows of evicted keys that are forgotten already."""
        slab = self.states.slabs[partition]
        there = np.flatnonzero((slab.steps[changed.rows] > 0) | slab.is_evicted(changed.rows))
        return ChangedRows(changed.rows[there], changed.first_offsets[there])

    def commit(self) -> None:
        """Keep the states of the oldest batch in flight."""
        self.states.commit()

    def rollback(self) -> None:
        """Take the states of the newest batch in flight back; without one, nothing happens."""
        self.states.rollback()

    def _split_by_time(self, observations: Observations) -> tuple[Ints | None, list[DeadLetter]]:
        """(positions of those that are not too late, None: all; dead letters of the others).

        docs/semantics.md, line 36. The stream time moves on, whatever becomes of the events.
        """
        if self._max_lateness_ms is None:
            return None, []
        behind = np.empty(len(observations.index), np.int64)
        for partition in partition_numbers(observations.partitions):
            mine = np.flatnonzero(observations.partitions == partition)
            behind[mine] = self.states.pass_time(partition, observations.offsets[mine], observations.timestamps[mine])
        too_late = np.flatnonzero(behind > self._max_lateness_ms)
        if not len(too_late):
            return None, []
        letters = [
            DeadLetter(
                int(observations.index[i]),
                "late",
                f"the event is {behind[i]} ms older than the newest of its partition, more than input.max_lateness"
                f" ({self._max_lateness_ms} ms)",
            )
            for i in too_late.tolist()
        ]
        return np.flatnonzero(behind <= self._max_lateness_ms), letters

    def _run_rounds(
        self,
        observations: Observations,
        silent: Bools | None,
        policy: AlertPolicy | None,
        *,
        count_hours: bool = True,
        more: bool = False,
        evict: bool = True,
    ) -> tuple[_RoundOutputs, dict[int, ChangedRows], Decisions | None, dict[int, Ints]]:
        with self._timer("gather"):
            states = self.states.gather(observations.partitions, observations.keys, more=more)
            first_change = np.full(len(states.steps), -1, dtype=np.int64)
        outputs = _RoundOutputs.of(len(observations.index))
        with self._timer("step"):
            moved = run_rounds(
                self._mover,
                observations,
                states,
                ttl_ms=self._ttl_ms,
                late_moves=self._late == "apply",
            )
            if moved is not None:
                _apply_moved(moved, observations, states, outputs, first_change)
            else:
                for start, end in zip(states.round_bounds, states.round_bounds[1:], strict=False):
                    self._run_round(observations, states.by_round[start:end], states, outputs, first_change)
        with self._timer("stage"):
            decided = None
            if policy is not None:
                answered = outputs.answered if silent is None else outputs.answered & ~silent
                decided = policy.decide(observations, answered, outputs.score, self.states, count_hours=count_hours)
                _touch(observations, np.array(decided.touched, np.int64), states, first_change)
            self.states.apply(states)
            changed = _changed_rows(states, first_change)
            evicted = {}
            if self._limit is not None and evict:
                for partition, (rows, offsets) in self._limit.evict(observations, states, first_change).items():
                    evicted[partition] = rows  # none of them is among those that have changed
                    change = changed[partition]
                    firsts = np.concatenate([change.first_offsets, offsets])
                    order = np.argsort(firsts, kind="stable")
                    changed[partition] = ChangedRows(np.concatenate([change.rows, rows])[order], firsts[order])
        return outputs, changed, decided, evicted

    def _reasons(self, observations: Observations, alerts: Ints, score: Floats) -> Floats | None:
        """[A, G] Of the observations `alerts` [A] of the newest batch, with their scores [A]: see Predictions."""
        if self._occlusion is None:
            return None
        if not len(alerts):
            return np.empty((0, len(self._occlusion.names)), np.float32)
        with self._timer("reasons"):
            return self._occlusion.sizes(self._met_by(observations, alerts), score)

    def _met_by(self, observations: Observations, chosen: Ints) -> StepInput:
        """What the model met at `chosen` of the newest batch's observations, in their order.

        The states in between are not kept, so the keys' observations up to there are done again, on copies.
        """
        wanted = np.zeros(len(observations.index), np.bool_)
        wanted[chosen] = True
        states = self.states.newest_before().up_to(wanted)
        order = states.by_round
        watcher = WatchingMover(self._model, wanted[order])
        moved = run_rounds(watcher, observations, states, ttl_ms=self._ttl_ms, late_moves=self._late == "apply")
        met = self._met_in_rounds(observations, wanted, states) if moved is None else watcher.met
        return met.take(np.argsort(order[wanted[order]]))

    def _met_in_rounds(self, observations: Observations, wanted: Bools, states: BatchStates) -> StepInput:
        """The same in the order of the rounds, where not every observation moves its state."""
        outputs, first_change = _RoundOutputs.of(len(wanted)), np.full(len(states.steps), -1, dtype=np.int64)
        found = []
        for start, end in itertools.pairwise(states.round_bounds):
            here = states.by_round[start:end]
            found.append(self._meet(observations, here, states).given.take(np.flatnonzero(wanted[here])))
            self._run_round(observations, here, states, outputs, first_change)
        return StepInput(*map(np.concatenate, zip(*found, strict=True)))

    def _meet(self, observations: Observations, chosen: Ints, states: BatchStates) -> _Met:
        """One observation of each of the first n slots: lines 4 to 8 of docs/semantics.md."""
        n = len(chosen)
        timestamp = observations.timestamps[chosen]
        steps, last = states.steps[:n], states.last_timestamp[:n]
        afresh = states.failures[:n] >= self._reset_after  # line 4
        seen = (steps > 0) & ~afresh
        late = seen & (timestamp < last)  # line 5
        elapsed = np.where(seen, np.maximum(0, timestamp - last) / 1000, np.nan).astype(np.float32)  # line 7
        state = states.rows[:n]
        expired = np.zeros(n, dtype=np.bool_)
        if self._ttl_ms is not None:
            expired = seen & (timestamp - last > self._ttl_ms)  # line 8
            if expired.any():
                state = np.where(expired[:, None], self.states.initial, state)
                elapsed[expired] = np.nan
        if afresh.any():
            state = np.where(afresh[:, None], self.states.initial, state)
        given = StepInput(observations.x[chosen], observations.categories[chosen], timestamp, elapsed, state)
        return _Met(given, seen, late, expired, afresh)

    def _run_round(
        self, observations: Observations, chosen: Ints, states: BatchStates, outputs: _RoundOutputs, first_change: Ints
    ) -> None:
        """One observation of each of the first n slots: lines 4 to 13 of docs/semantics.md."""
        n = len(chosen)
        given, seen, late, expired, afresh = self._meet(observations, chosen, states)
        timestamp, state = given.timestamp, given.state
        steps, last, failures = states.steps[:n], states.last_timestamp[:n], states.failures[:n]
        out = self._model.step(given)

        dropped = late if self._late == "drop" else np.zeros(n, dtype=np.bool_)  # line 6
        answered = out.finite() & ~dropped  # line 10
        moves = answered & ~late if self._late == "score" else answered  # lines 11 and 12
        failed = self._failures_of_state(observations, chosen, ~(answered | dropped) & seen)  # line 10
        base = np.where(expired | afresh, 0, steps)

        outputs.score[chosen] = out.score
        if out.prediction is not None:
            if outputs.prediction is None:
                outputs.prediction = np.empty((len(observations.index), out.prediction.shape[1]), dtype=np.float32)
            outputs.prediction[chosen] = out.prediction
        outputs.steps[chosen] = base + moves
        outputs.answered[chosen] = answered
        outputs.late_events += int(late.sum())
        outputs.expired += int((expired & moves).sum())
        outputs.resets += int((afresh & moves).sum())
        if not answered.all():
            for i in np.flatnonzero(~answered).tolist():
                behind_ms = int(last[i] - timestamp[i]) if dropped[i] else None
                outputs.rejected[int(chosen[i])] = (
                    self._late_rejection(behind_ms) if behind_ms is not None else self._step_rejection(state[i])
                )

        if moves.all():
            states.rows[:n] = out.state
        else:
            states.rows[:n][moves] = out.state[moves]
        states.last_timestamp[:n] = np.where(
            moves & seen, np.maximum(last, timestamp), np.where(moves, timestamp, last)
        )
        states.steps[:n] = np.where(moves, base + 1, steps)
        touched = (moves if self._limit is None else answered) | failed  # line 38: an answered one sees its key
        states.failures[:n] = np.where(moves, 0, np.minimum(failures + failed, MAX_FAILURES))
        states.last_offset[:n] = np.where(touched, observations.offsets[chosen], states.last_offset[:n])
        first = touched & (first_change[:n] < 0)
        first_change[:n][first] = observations.offsets[chosen][first]

    def _failures_of_state(self, observations: Observations, chosen: Ints, rejected: Bools) -> Bools:
        """[n] Which of the rejected would have an answer on a fresh state: it is their key's state that is at fault."""
        rows = np.flatnonzero(rejected)
        if not len(rows):
            return rejected
        at = chosen[rows]
        fresh = np.repeat(self.states.initial[None], len(rows), axis=0)
        out = self._model.step(
            StepInput(
                observations.x[at],
                observations.categories[at],
                observations.timestamps[at],
                np.full(len(rows), np.nan, dtype=np.float32),
                fresh,
            )
        )
        failed = np.zeros(len(rejected), dtype=np.bool_)
        failed[rows] = out.finite()
        return failed

    def _late_rejection(self, behind_ms: int) -> tuple[str, str]:
        return "late", f"the event is {behind_ms} ms older than the newest of its key, and input.late is drop"

    def _step_rejection(self, state: Floats) -> tuple[str, str]:
        """(stage, message), which names the part of a state that has grown too large."""
        size = np.abs(state)
        largest = int(size.argmax())
        grown = ""
        if size[largest] >= GROWN:
            part = next(p for p in reversed(self.card.state.parts) if p.offset <= largest)
            grown = (
                f". It has grown to {size[largest]:.0e} in {part.name!r}; after {self._reset_after} such events in a"
                " row the key starts with a fresh state"
            )
        return "step", (f"the model's output for this event is not finite; the key's state stays as it was{grown}")

    def _not_applied(self, observations: Observations) -> Ints | None:
        """The observations that their key's state does not contain yet; None: all of them."""
        fresh = np.ones(len(observations.index), dtype=np.bool_)
        for partition in partition_numbers(observations.partitions):
            slab = self.states.slabs[partition]
            mine = np.flatnonzero(observations.partitions == partition)
            rows, _ = slab.index.find_all(pick(observations.keys, mine))
            fresh[mine] = (rows < 0) | (observations.offsets[mine] > slab.last_offset[rows])
        return None if fresh.all() else np.flatnonzero(fresh)


def _part_of(observations: Observations, part: slice) -> Observations:
    if part.stop - part.start == len(observations.index):
        return observations
    return observations.take(np.arange(part.start, part.stop))


def _apply_moved(
    moved: MovedStates, observations: Observations, states: BatchStates, outputs: _RoundOutputs, first_change: Ints
) -> None:
    """What `_run_round` would have left, round after round."""
    order = states.by_round
    outputs.score[order] = moved.score
    if moved.prediction is not None:
        outputs.prediction = np.empty_like(moved.prediction)
        outputs.prediction[order] = moved.prediction
    outputs.steps[order] = moved.steps
    outputs.answered[:] = True
    outputs.late_events, outputs.expired = moved.late_events, moved.expired
    states.steps, states.last_timestamp = moved.slot_steps, moved.last_timestamp
    states.last_offset = moved.last_offset
    first_change[:] = observations.offsets[order[: len(first_change)]]


def _touch(observations: Observations, touched: Ints, states: BatchStates, first_change: Ints) -> None:
    """Their keys have changed at these observations, although a late one may have left the state as it was."""
    if not len(touched):
        return
    sizes = np.diff(states.round_bounds)
    slots = np.empty(len(states.by_round), np.int64)
    slots[states.by_round] = np.arange(len(slots)) - np.repeat(states.round_bounds[:-1], sizes)
    where, offsets = slots[touched], observations.offsets[touched]
    np.maximum.at(states.last_offset, where, offsets)
    first = np.where(first_change < 0, np.iinfo(np.int64).max, first_change)
    np.minimum.at(first, where, offsets)
    first_change[where] = first[where]


def _changed_rows(states: BatchStates, first_change: Ints) -> dict[int, ChangedRows]:
    changed = {}
    for partition in partition_numbers(states.partitions):
        where = np.flatnonzero((states.partitions == partition) & (first_change >= 0))
        where = where[np.argsort(first_change[where], kind="stable")]
        changed[partition] = ChangedRows(states.row_numbers[where], first_change[where])
    return changed
