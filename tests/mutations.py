"""Break each comparison and each order of committer, partition and restore once, and list which test notices.

    python -m tests.mutations                      # about an hour; not part of `make test`
    python -m tests.mutations --list               # what would be broken
    python -m tests.mutations --only remedy:       # those whose names begin so
    python -m tests.mutations --only lstmstream/serve/committer.py --skip-slow
    python -m tests.mutations --part 1/2           # the other half: 2/2

Each mutant is tested in a copy of the working tree, by those tests that run its lines, which a first run without a
mutant finds out. A survivor is either explained in EXPLAINED or lacks a test; with survivors that nobody has explained
the exit code is 1.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
import prometheus_client
import pydantic
import pytest

from tests.covering_tests import CoveringTests, record

ROOT = Path(__file__).parent.parent
GENERATED = tuple(f"lstmstream/serve/{name}.py" for name in ("committer", "partition", "restore", "seeks"))
FAST = [
    *("tests/serve/test_committer.py", "tests/serve/test_in_doubt.py", "tests/serve/test_restore_choice.py"),
    *("tests/serve/test_restore_retries.py", "tests/serve/test_daemon.py", "tests/serve/test_overlap.py"),
    *("tests/serve/test_restore.py", "tests/serve/test_offsets_without_records.py", "tests/serve/test_wrong_state.py"),
    *("tests/serve/test_restore_unreadable.py", "tests/serve/test_partition.py", "tests/serve/test_checkpoint.py"),
    *("tests/serve/test_restore_faults.py", "tests/serve/test_handover.py", "tests/serve/test_refusals.py"),
    *("tests/serve/test_position.py", "tests/serve/test_slept.py", "tests/transport/test_memory.py"),
    *("tests/transport/test_kafka_transport.py", "tests/serve/test_erasure.py", "tests/serve/test_key_limit.py"),
    *("tests/serve/test_expiry.py", "tests/serve/test_limited_erasure.py", "tests/serve/test_abandoned.py"),
    *("tests/transport/test_protocol.py", "tests/states/test_repartition.py"),
    *("tests/serve/test_rebuild.py", "tests/verify/test_alerts.py", "tests/verify/test_expiry.py"),
    *("tests/serve/test_standby.py", "tests/serve/test_old_models.py"),
]
LEFT_OUT = ("TestAtLeastOnce", "any_schedule", "any_history", "memory_of_a_replay", "those_of_a_dict", "of_a_stop_grow")
FAST_LEFT_OUT = " and ".join(f"not {name}" for name in LEFT_OUT)
SLOW = ["tests/serve/test_schedules.py"]
SCHEDULES = "60"
LIMIT_S = 300
TEST_LIMIT_S = 90  # of one test, which a mutant may keep from its end
OPTIONS = ["-x", "-q", "--no-header", "-p", "no:cacheprovider", "--hypothesis-profile=no-shrinking"]

IMPORTED = (np, onnxruntime, prometheus_client, pydantic)  # once, for all that is forked

OPERATORS: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}


class Mutant(NamedTuple):
    """One change of one file."""

    name: str
    file: str
    start: int  # characters
    end: int
    text: str  # in their place

    def lines(self, source: str) -> range:
        """Of `source`, which it changes."""
        first = 1 + source.count("\n", 0, self.start)
        return range(first, first + 1 + source.count("\n", self.start, self.end))

    def apply(self, source: str) -> str:
        return source[: self.start] + self.text + source[self.end :]


# What docs/architecture.md calls the protocol, each rule taken out by hand: name, file, before, after.
REMEDIES = [
    (
        "no new producer after an error",
        "lstmstream/serve/daemon.py",
        "                self._transport.recover()\n                self._housekeeping.check_topics()",
        "                self._housekeeping.check_topics()",
    ),
    (
        "the outcome is told by offsets, not by the nonce",
        "lstmstream/serve/committer.py",
        "committed[partition].metadata == self.nonce for partition in",
        "committed[partition].offset == self.plan.offsets[partition] for partition in",
    ),
    (
        "a transaction whose outcome is not known counts as committed",
        "lstmstream/serve/committer.py",
        "        if pending.was_committed(committed):",
        "        if True:",
    ),
    (
        "a transaction whose outcome is not known counts as aborted",
        "lstmstream/serve/committer.py",
        "        if pending.was_committed(committed):",
        "        if False:",
    ),
    (
        "the batch in flight outlives the failure of the one before",
        "lstmstream/serve/committer.py",
        "        while self._engine.in_flight > batches:",
        "        while False:",
    ),
    (
        "a membership that is not valid may commit",
        "lstmstream/serve/daemon.py",
        "        return membership.valid\n",
        "        return True\n",
    ),
    (
        "what was read while out of the group is not read again",
        "lstmstream/serve/daemon.py",
        "            self._read_again(batch)\n",
        "",
    ),
    (
        "a partition is given up within a transaction",
        "lstmstream/serve/daemon.py",
        "            self._committer.wait()  # nothing is given up in the middle of a transaction\n",
        "",
    ),
    (
        "records that a client gives once more are processed",
        "lstmstream/serve/seeks.py",
        "            if offset < processed[partition]:\n",
        "            if False:\n",
    ),
    (
        "what a client skips is not looked for",
        "lstmstream/serve/seeks.py",
        "                self._check_empty(partition, sought, reached)\n",
        "                pass\n",
    ),
    (
        "a new generation does not look at the group's offsets",
        "lstmstream/serve/daemon.py",
        "            self._check_retained(polled.membership)\n",
        "            pass\n",
    ),
    (
        "after an error it goes on where the client was",
        "lstmstream/serve/daemon.py",
        "            self._seeks.resume(partition.number, partition.next_offset)\n        self._failed",
        "            pass\n        self._failed",
    ),
    (
        "the position of a partition is not compared with the group's offset",
        "lstmstream/serve/daemon.py",
        "if found is None or found.offset != partition.position:\n                log",
        "if found is None:\n                log",
    ),
    (
        "states without the offset of their partition",
        "lstmstream/serve/checkpoint.py",
        "            if writes or position > partition.position:",
        "            if position > partition.position:",
    ),
    (
        "an erasure without the offset of its partition",
        "lstmstream/serve/checkpoint.py",
        "(written, deleted, floors, erasures, old_models)\n",
        "(written, deleted, floors, old_models)\n",
    ),
    (
        "an erased key stays in memory",
        "lstmstream/serve/checkpoint.py",
        "            partition.erase(keys)",
        "            pass",
    ),
    (
        "a replay applies the events of erased keys",
        "lstmstream/serve/restore.py",
        "count_hours=self._alerts.count_hours, kept=kept, evict=self._evicts",
        "count_hours=self._alerts.count_hours, evict=self._evicts",
    ),
    (
        "an erasure waits until no events come",
        "lstmstream/serve/daemon.py",
        "            if self._partitions.erasures_due():",
        "            if not len(batch) and self._partitions.erasures_due():",
    ),
    (
        "an erasure leaves the states of other models",
        "lstmstream/serve/state_loader.py",
        "                self._partition.erasures.identities.add(identity)\n",
        "",
    ),
    (
        "a request is forgotten before its transaction is committed",
        "lstmstream/serve/erasures.py",
        "        requests = dict(islice(self._requests.items(), 1))\n",
        "        requests = dict([self._requests.popitem()]) if self._requests else {}\n",
    ),
    (
        "an erasure is forgotten too early",
        "lstmstream/serve/erasures.py",
        "if offset <= beginning}",
        "if offset <= beginning + 1}",
    ),
    (
        "the group's offset may go back behind an erasure",
        "lstmstream/serve/restore.py",
        "        if committed < self.partition.erasures.last:",
        "        if committed < -1:",
    ),
    (
        "the floor passes what is not written",
        "lstmstream/serve/checkpoint.py",
        "    if next_dirty is not None:\n        return next_dirty\n",
        "",
    ),
    (
        "the floor passes what the batch itself changes",
        "lstmstream/serve/checkpoint.py",
        "    if changed is not None and len(changed.rows):\n        return int(changed.first_offsets[0])\n",
        "",
    ),
    (
        "a row that the batch changes and the plan writes is marked dirty by its first change",
        "lstmstream/serve/checkpoint.py",
        "                partition.dirty.clean(rows)\n",
        "                pass\n",
    ),
    (
        "the state topic is read up to the last stable offset",
        "lstmstream/serve/restore_load.py",
        "        self._reader = transport.open_reader(topic, number, start, end)\n",
        (
            "        stable = transport._broker.transactions.stable_end  # type: ignore\n"
            "        end = stable(topic, number, end)\n"
            "        self._reader = transport.open_reader(topic, number, start, end)\n"
        ),
    ),
    (
        "the committed offset is looked up after the end of the state topic",
        "lstmstream/serve/restore.py",
        "        number = self.partition.number\n        self._committed = ",
        "        number = self.partition.number\n        self._load._open()\n        self._committed = ",
    ),
    (
        "a restore goes on although the group's offset has moved",
        "lstmstream/serve/daemon.py",
        "            restore.check_again()\n        self._restore_moved",
        "            pass\n        self._restore_moved",
    ),
    (
        "the first floor is not waited for",
        "lstmstream/serve/restore.py",
        "        self._context.commit(self._context.checkpointer.initial_plan(number, origin), membership)\n",
        "",
    ),
    (
        "states of another origin count",
        "lstmstream/serve/restore.py",
        "slab.index.keys_at(rows[~of_floor | ahead | left])",
        "slab.index.keys_at(rows[ahead | left])",
    ),
    (
        "states that keys have left behind count",
        "lstmstream/serve/restore.py",
        "slab.index.keys_at(rows[~of_floor | ahead | left])",
        "slab.index.keys_at(rows[~of_floor | ahead])",
    ),
    (
        "states ahead of the committed offset count",
        "lstmstream/serve/restore.py",
        "slab.index.keys_at(rows[~of_floor | ahead | left])",
        "slab.index.keys_at(rows[~of_floor | left])",
    ),
    (
        "what a replay changes is not dirty",
        "lstmstream/serve/restore.py",
        "                self.partition.dirty.mark_only(changed)\n",
        "                pass\n",
    ),
    (
        "what a dead member has left open is not ended",
        "lstmstream/serve/daemon.py",
        "            self._abandoned.tick(membership)\n",
        "            pass\n",
    ),
    (
        "after a failure what a dead member has left open is not looked for again",
        "lstmstream/serve/abandoned.py",
        "            if self._attempts < ATTEMPTS:\n",
        "            if False:\n",
    ),
    (
        "the transaction of a living member is ended",
        "lstmstream/transport/abandoned.py",
        " and one.removeprefix(prefix) not in member_ids)",
        ")",
    ),
    (
        "the transactional id does not name the member",
        "lstmstream/transport/kafka.py",
        "        if self._instance is None and member_id:\n",
        "        if False:\n",
    ),
    (
        "the producer is used again after an error",
        "lstmstream/transport/kafka.py",
        "        self._discard_writer()\n        if self._credentials",
        "        if self._writer is not None:\n            return\n        if self._credentials",
    ),
]

# Survivors that change nothing that may be relied on, with the reason.
_INDEPENDENT = "none of the two knows the other, and neither fails: their order is free"
_NO_TIME_BEFORE = "the time before the first event is that of a new slab too, and nobody asks where it begins"
_A_MOMENT = "a limit of time, and no moment of it matters"

EXPLAINED = {
    "`self._refusals.note(result, error) self._batch_limit.on_refused(events)`": _INDEPENDENT,
    "`self._engine.rollback() self._observer.on_abort()`": _INDEPENDENT,
    "`self._batch_limit.on_failure(events, took_s) self._write_limit.on_failure(writes, took_s)`": _INDEPENDENT,
    "`self._use(self._states.adopt(self.number, other._states)) self.erasures, other.erasures": _INDEPENDENT,
    "`self.partition.begin_states(origin) self._alerts.begin(origin)`": _INDEPENDENT,
    "`self._load.forget() self.close()`": _INDEPENDENT,
    "restore.py:200: `self.close()` → `pass`": "at the end of each phase its reader is closed too",
    "`self._load.forget()` → `pass`": "it frees memory; a restore that begins again forgets it too",
    "`self.slab.stream_time.begin(origin, NEVER)` → `pass`": _NO_TIME_BEFORE,
    "`self._use(self._states.open(self.number)) self.slab.stream_time.begin(origin, NEVER)`": _NO_TIME_BEFORE,
    "`self._engine.commit() self._refusals.on_commit(plan.offsets)`": _INDEPENDENT,
    "`self._refusals.on_commit(plan.offsets) self._observer.on_commit(": _INDEPENDENT,
    "`self._warnings.of_rebuild(self._context.checkpointer.identity, origin, committed) self.close()`": _INDEPENDENT,
    "`self._run(self._committed.offset, floor=self._replay_from, floor_position=self._floor_position) #": _INDEPENDENT,
    "`self.partition.dirty.enqueue_marked(-np.inf, self._min_timestamp_ms) self._context.checkpointer.add_to_budget(": (
        _INDEPENDENT
    ),
    "`self.close() self.partition.run(position=position, floor=floor,": _INDEPENDENT,
    "`self._doubted_since_s is not None and self.phase is RestorePhase.CHOOSE` → `": (
        "only the tests' clock asks, which then goes on by as much as the restore waits"
    ),
    "`self._warnings.of_reset(ours, others) self._start_empty(membership, committed)`": "it is said before or after",
    "`now_s - self._doubted_since_s >= DOUBT_S` → ": _A_MOMENT,
    '`log.error("skipped, the states do not contain it: %s", error.problem) #': _INDEPENDENT,
    "restore.py:422: `committed > self._answered` → ": "a gap without offsets is passed over at once",
    "`floor.offset < floor.rebuilt_to` → ": "one that has come so far says -1 in its place",
    "restore.py:420: `self.close()` → `pass`": "the next phase closes it before it opens a reader of its own",
    "seeks.py:57: `reached > sought` → `reached >= sought`": "there is nothing to be read in between",
    "seeks.py:79: `self._clock() > give_up_s` → `self._clock() >= give_up_s`": _A_MOMENT,
    "`known_start <= start <= known_end` → `known_start <= start < known_end`": "where the two are one, both give it",
    "the committed offset is looked up after the end of the state topic": "whoever writes behind that end is fenced",
    "partition.py:117: `self.oldest()` → `pass`": "it frees memory; `Checkpointer.due` does the same in each round",
}  # by what is changed


def remedies() -> Iterator[Mutant]:
    for name, file, before, after in REMEDIES:
        source = (ROOT / file).read_text(encoding="utf-8")
        if source.count(before) != 1:
            raise SystemExit(f"{name}: its text is {source.count(before)} times in {file}")
        start = source.index(before)
        yield Mutant(f"remedy: {name}", file, start, start + len(before), after)


class Source:
    """One file, and what can be changed in it."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.text = (ROOT / file).read_text(encoding="utf-8")
        self.tree = ast.parse(self.text)
        self._lines = [0]
        for line in self.text.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))

    def _start(self, node: ast.stmt | ast.expr) -> int:
        return self._lines[node.lineno - 1] + node.col_offset  # the sources are ASCII, or nearly

    def _end(self, node: ast.stmt | ast.expr) -> int:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._lines[node.end_lineno - 1] + node.end_col_offset

    def _mutant(self, line: int, start: int, end: int, text: str) -> Mutant:
        before = " ".join(self.text[start:end].split())
        return Mutant(f"{self.file}:{line}: `{before}` → `{' '.join(text.split())}`", self.file, start, end, text)

    def mutants(self) -> Iterator[Mutant]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Compare):
                yield from self._comparison(node)
            elif isinstance(node, ast.BoolOp):
                yield from self._connection(node)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("max", "min"):
                other = "min" if node.func.id == "max" else "max"
                yield self._mutant(node.lineno, self._start(node), self._end(node), other + self._of(node)[3:])
            for body in (getattr(node, name, None) for name in ("body", "orelse", "finalbody")):
                if isinstance(body, list) and not isinstance(node, ast.Module | ast.ClassDef):
                    yield from self._statements(body)

    def _of(self, node: ast.stmt | ast.expr) -> str:
        return self.text[self._start(node) : self._end(node)]

    def _comparison(self, node: ast.Compare) -> Iterator[Mutant]:
        left = node.left
        for operator, right in zip(node.ops, node.comparators, strict=True):
            old, new = OPERATORS[type(operator)]
            between = self.text[self._end(left) : self._start(right)]
            found = re.search(rf"(?<!\w){re.escape(old)}(?!\w)", between)
            if found:
                at = self._end(left)
                changed = between[: found.start()] + new + between[found.end() :]
                whole = (self._start(node), self._end(node))
                text = self.text[whole[0] : at] + changed + self.text[self._start(right) : whole[1]]
                yield self._mutant(node.lineno, *whole, text)
            left = right

    def _connection(self, node: ast.BoolOp) -> Iterator[Mutant]:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            start, end = self._end(left), self._start(right)
            changed = re.sub(rf"\b{old}\b", new, self.text[start:end], count=1)
            whole = (self._start(node), self._end(node))
            yield self._mutant(node.lineno, *whole, self.text[whole[0] : start] + changed + self.text[end : whole[1]])

    def _statements(self, body: list[ast.stmt]) -> Iterator[Mutant]:
        """Each call for its effect is left out once, and changes places with the statement after it."""
        for number, statement in enumerate(body):
            is_call = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
            if is_call:
                yield self._mutant(statement.lineno, self._start(statement), self._end(statement), "pass")
            following = body[number + 1] if number + 1 < len(body) else None
            if following is None or not isinstance(following, ast.Expr | ast.Assign | ast.AugAssign | ast.AnnAssign):
                continue
            if is_call and any(isinstance(part, ast.Call) for part in ast.walk(following)):
                between = self.text[self._end(statement) : self._start(following)]
                text = self._of(following) + between + self._of(statement)
                yield self._mutant(statement.lineno, self._start(statement), self._end(following), text)


def all_mutants() -> list[Mutant]:
    """Those of the remedies first."""
    return [*remedies(), *(mutant for file in GENERATED for mutant in Source(file).mutants())]


def copy_tree(folder: Path) -> None:
    """What git knows of, and the compiled codec, without which some tests fail."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    files = [name for name in listed.split("\0") if name] + [
        str(path.relative_to(ROOT)) for path in (ROOT / "lstmstream").glob("_codec*.so")
    ]
    for name in files:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def noticed_by(folder: Path, files: list[str], *options: str) -> str | None:
    """The first test that fails; None if all pass. In a process that has imported the libraries already."""
    output = folder / "mutant.log"
    child = os.fork()
    if not child:
        os._exit(_run_pytest(folder, output, [*OPTIONS, f"--timeout={TEST_LIMIT_S}", *options, *files]))
    limit_s = time.monotonic() + LIMIT_S
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > limit_s:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "(it does not end)"
        time.sleep(0.02)
    if status == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) (tests/.+?)(?: - |$)", output.read_text(errors="replace"), re.MULTILINE)
    if found is None:
        raise RuntimeError(output.read_text(errors="replace"))
    return found[1]


def find_covering_tests(folder: Path, files: Collection[str]) -> CoveringTests:
    """Raises RuntimeError where a test fails without any mutant."""
    output = folder / "mutant.log"
    child = os.fork()
    if not child:
        os._exit(_run_pytest(folder, output, [*OPTIONS, "-k", FAST_LEFT_OUT, *FAST], recorded=files))
    if os.waitpid(child, 0)[1]:
        raise RuntimeError(output.read_text(errors="replace"))
    return CoveringTests(folder, files)


def _run_pytest(folder: Path, output: Path, arguments: list[str], recorded: Collection[str] = ()) -> int:
    """`recorded`: files for whose lines it is noted which tests run them."""
    with output.open("w") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    os.chdir(folder)
    sys.path[:] = [str(folder), *(path for path in sys.path if Path(path or ".").resolve() != ROOT)]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "lstmstream")]:
        del sys.modules[name]
    os.environ["LSTMSTREAM_SCHEDULES"] = SCHEDULES
    sys.dont_write_bytecode = True  # two mutants may have one length, and come within one second
    try:
        return record(folder, recorded, arguments) if recorded else int(pytest.main(arguments))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        return 99


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="those whose names begin so")
    parser.add_argument("--part", default="1/1", help="K/N: each N-th of these, for N runs side by side")
    parser.add_argument("--list", action="store_true", help="name them, and break nothing")
    parser.add_argument("--skip-slow", action="store_true", help="without the schedules")
    parser.add_argument("--slow-first", action="store_true", help="ask the schedules first: what do they notice alone?")
    given = parser.parse_args()
    part, parts_of_all = map(int, given.part.split("/"))
    mutants = [mutant for mutant in all_mutants() if mutant.name.startswith(given.only)][part - 1 :: parts_of_all]
    if given.list:
        print("\n".join(mutant.name for mutant in mutants))
        return 0
    survivors = []
    with tempfile.TemporaryDirectory(prefix="mutations-") as name:
        folder = Path(name)
        copy_tree(folder)
        covering = find_covering_tests(folder, {mutant.file for mutant in mutants})
        for number, mutant in enumerate(mutants, 1):
            file, began_s = folder / mutant.file, time.monotonic()
            source = file.read_text(encoding="utf-8")
            file.write_text(mutant.apply(source), encoding="utf-8")
            fast = covering.of(mutant.file, mutant.lines(source))
            parts = [(fast or FAST, ["-k", FAST_LEFT_OUT]), *([] if given.skip_slow else [(SLOW, [])])]
            found = None
            for files, options in reversed(parts) if given.slow_first else parts:
                found = found or noticed_by(folder, files, *options)
            file.write_text(source, encoding="utf-8")
            said = found or next((why for what, why in EXPLAINED.items() if what in mutant.name), None)
            if said is None:
                survivors.append(mutant.name)
            print(
                f"{number}/{len(mutants)} {mutant.name}\n    {said or 'SURVIVED'} ({time.monotonic() - began_s:.0f} s)",
                flush=True,
            )
    print(f"{len(mutants)} broken, {len(survivors)} not noticed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
