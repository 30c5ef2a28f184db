"""Real customers through a real Kafka and the daemon, interrupted twice: the answers of torch, of `score`, each once.

    python -m benchmarks.parity [--share 1.0] [--client both] [--bootstrap-servers HOST:PORT]

Prints what it found; exit code 1 on any difference. Without a broker given it starts one of its own and removes it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from lstmstream.dev.broker import DevBroker
from tests.broker import harness
from tests.broker.answers import KEY, Checker, Digest, Events, load_events, score_offline
from tests.broker.harness import (
    CommittedReader,
    Follower,
    RunningDaemon,
    admin,
    committed_offsets,
    create_topics,
    delete_topics,
    end_offsets,
    in_transaction,
    produce,
    read_all,
    write_config,
)

PARTITIONS = 4
CLIENTS = ("kafka-python", "confluent")
TOLERANCE = 1e-5
HIDDEN, LAYERS, BUCKETS, WIDTH = 32, 2, 64, 4
AMOUNT, ELAPSED = (3.6, 1.1), (10.0, 2.5)  # centre and scale of log1p
KILL_AT, STOP_AT = 0.3, 0.6  # of the answers


class Found(NamedTuple):
    """What one run came to; `problems` is empty if all is right."""

    problems: list[str]
    lines: list[str]


def make_weights() -> tuple[Any, Any, Any]:
    """An LSTM that remembers for long, a linear head, and a table for terminals; always the same."""
    import torch  # noqa: PLC0415 - the test that imports this file is collected where there is no torch

    torch.manual_seed(2018)
    lstm = torch.nn.LSTM(1 + 1 + 1 + 2 + WIDTH, HIDDEN, LAYERS, dropout=0.2).eval()
    head = torch.nn.Linear(HIDDEN, 1)
    table = torch.nn.Embedding(BUCKETS + 1, WIDTH)
    with torch.no_grad():
        for layer in range(LAYERS):
            getattr(lstm, f"bias_ih_l{layer}")[HIDDEN : 2 * HIDDEN] += 2.0  # forget little: a lost state shows for long
        head.weight *= 12  # and in scores that are far apart
    return lstm, head, table


def export_model(path: Path) -> Path:
    """The same weights as a model file."""
    from lstmstream.train.export import (  # noqa: PLC0415 - needs onnx
        Category,
        DenseHead,
        Elapsed,
        FeatureEncoder,
        NetworkSpec,
        Number,
        export,
        lstm_layers,
    )

    lstm, head, table = make_weights()
    encoder = FeatureEncoder(
        numbers=(Number("amount", *AMOUNT, log=True),),
        categories=(Category("terminal", table.weight.detach().numpy(), buckets=BUCKETS),),
        elapsed=Elapsed(*ELAPSED),
        hour_of_day=True,
    )
    weights = {name: values.detach().numpy() for name, values in lstm.state_dict().items()}
    layers = lstm_layers(weights)
    dense = DenseHead(head.weight.detach().numpy(), head.bias.detach().numpy(), "sigmoid")
    export(path, NetworkSpec(encoder, layers, dense), name="parity", version="1", threshold=0.5)
    return path


def torch_scores(events: Events) -> NDArray[np.float32]:
    """[N] `nn.LSTM` over each customer's whole sequence, preprocessing written anew in float64."""
    import torch  # noqa: PLC0415 - see above

    lstm, head, table = make_weights()
    customers = events.columns[KEY]
    order = np.argsort(customers, kind="stable")  # by customer, in the order of time within
    starts = np.flatnonzero(np.r_[True, customers[order][1:] != customers[order][:-1]])
    sequences = np.split(order, starts[1:])
    codes = np.array([1 + crc32(name.encode()) % BUCKETS for name in events.columns["terminal"].tolist()])
    amounts = (np.log1p(events.columns["amount"]) - AMOUNT[0]) / AMOUNT[1]
    angle = 2 * np.pi * (events.times_ms % 86_400_000) / 86_400_000
    scores = np.full(len(events), np.nan, dtype=np.float32)
    with torch.inference_mode():
        for some in (sequences[i : i + 256] for i in range(0, len(sequences), 256)):
            inputs = []
            for rows in some:
                latest = np.maximum.accumulate(events.times_ms[rows])
                seconds = np.maximum(0, events.times_ms[rows][1:] - latest[:-1]) / 1000
                elapsed = np.r_[0.0, (np.log1p(seconds) - ELAPSED[0]) / ELAPSED[1]]
                first = np.r_[1.0, np.zeros(len(rows) - 1)]
                columns = (amounts[rows], elapsed, first, np.sin(angle[rows]), np.cos(angle[rows]))
                plain = torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))
                inputs.append(torch.cat([plain, table(torch.from_numpy(codes[rows]))], dim=1))
            hidden, _ = lstm(torch.nn.utils.rnn.pad_sequence(inputs))
            out = torch.sigmoid(head(hidden))[:, :, 0].numpy()
            for column, rows in enumerate(some):
                scores[rows] = out[: len(rows), column]
    return scores


def check_parity(servers: str, folder: Path, name: str, share: float, say: Callable[[str], None]) -> Found:
    """The whole comparison on a broker that runs; `name` begins the names of topics and group."""
    model = export_model(folder / "model.onnx")
    config = write_config(
        folder / "daemon.yaml",
        name=name,
        model=model,
        servers=servers,
        state={"checkpoint_interval": "1s" if share < 0.5 else "5s"},
        batch={"max_events": 500 if share < 0.5 else 5_000},  # so that there is a middle in which it can be stopped
    )
    events = load_events(share, partitions=PARTITIONS)
    lengths = np.unique(events.columns[KEY], return_counts=True)[1]
    say(f"{len(events)} events of {len(lengths)} customers (up to {lengths.max()} each) from {events.origin}")
    topic = f"{name}.in"
    create_topics(servers, [topic, f"{name}.out"], partitions=PARTITIONS)
    began = time.monotonic()
    produce(servers, topic, events.records())
    ends = end_offsets(servers, topic, partitions=PARTITIONS)
    expected_ends = np.bincount(events.partitions, minlength=PARTITIONS).tolist()
    assert list(ends.values()) == expected_ends, f"the input has {ends} records and should have {expected_ends}"
    say(f"produced in {time.monotonic() - began:.1f} s to {PARTITIONS} partitions: {expected_ends}")
    expected = score_offline(config, events, folder)
    say("answered by lstmstream score")
    followed, checker, digest = Digest(), Checker(events, expected, input_topic=topic, partitions=PARTITIONS), Digest()
    problems = interrupted(config, folder, servers, name, len(events), followed, say)
    for record in read_all(servers, f"{name}.out", partitions=PARTITIONS, timeout_s=300):
        checker.take([record])
        digest.take([record])
    if checker.finish():
        problems.append(checker.report())
    if followed.seen() != digest.seen():
        problems.append(f"the reader that ran all the while saw {followed.seen()}, one at the end {digest.seen()}")
    if letters := sum(1 for _ in read_all(servers, f"{name}.dead-letter", partitions=PARTITIONS)):
        problems.append(f"{letters} dead letters, and no event is bad")
    difference = np.abs(checker.scores.astype(np.float64) - torch_scores(events))
    worst, spread = float(np.max(difference)), float(np.std(checker.scores))
    if not worst <= TOLERANCE:  # NaN too
        problems.append(f"{np.sum(~(difference <= TOLERANCE))} scores differ from torch's by more than {TOLERANCE:g}")
    if not spread > 0.05:
        problems.append(f"the scores' standard deviation is {spread:.3g}: too little to prove anything")
    differing = checker.problems["not as `score` answers"]
    once = len(events) - sum(checker.problems[what] for what in _NOT_ONCE)
    lines = [
        f"largest difference from torch's nn.LSTM over whole sequences: {worst:.2g} (allowed {TOLERANCE:g})",
        f"standard deviation of the scores: {spread:.2f}",
        f"answers that differ from lstmstream score in any bit: {differing}",
        f"events answered exactly once: {once} of {len(events)}",
        f"a reader that ran all the while saw the same: {followed.seen() == digest.seen()}",
    ]
    return Found(problems, lines)


_NOT_ONCE = ("without an answer", "answered more than once")


def interrupted(
    config: Path, folder: Path, servers: str, name: str, total: int, followed: Digest, say: Callable[[str], None]
) -> list[str]:
    """Serve all events with a kill -9 and a SIGTERM in the middle; what went wrong."""
    problems: list[str] = []
    began = time.monotonic()

    def left(what: str) -> int:
        done = sum(committed_offsets(servers, name).values())
        say(f"{time.monotonic() - began:6.1f} s  {what}: {done} events answered, {total - done} left")
        if not 0 < done < total:
            problems.append(f"{what} proves nothing: {done} of {total} events were answered by then")
        return done

    def serve(number: int, until: float, done: int) -> RunningDaemon:
        """A daemon, once so much of all is answered; its own count is nearer to the present than any reader."""
        daemon = RunningDaemon(config, folder / f"daemon-{number}.log")
        try:
            ready_s = daemon.wait_ready()
            say(f"{time.monotonic() - began:6.1f} s  daemon {number} ready after {ready_s:.1f} s")
            if until < 1:
                need = until * total - done
                daemon.wait(lambda: daemon.count("events_total") >= need, f"{until:.0%} answered", timeout_s=300)
            else:
                follower.wait_for(total, alive=lambda: _alive(daemon))
        except BaseException:
            say(f"the log of daemon {number} ends with\n{daemon.last_words()}")
            daemon.kill9()
            raise
        return daemon

    with Follower(servers, f"{name}.out", partitions=PARTITIONS, take=followed.take) as follower:
        with serve(1, KILL_AT, 0) as daemon, admin(servers) as client:
            inside = daemon.kill9_when(lambda: in_transaction(client, f"{name}.out", partitions=PARTITIONS))
            done = left("kill -9")
            if not inside:
                problems.append("no moment within a transaction was found for the kill -9")
        with serve(2, STOP_AT, done) as daemon:
            code = daemon.sigterm()
            done = left("SIGTERM")
            if code != 0:
                problems.append(f"exit code {code} after SIGTERM\n{daemon.last_words()}")
        with serve(3, 1.0, done) as daemon:
            code = daemon.sigterm()
            say(f"{time.monotonic() - began:6.1f} s  all answered, stopped with code {code}")
            if code != 0:
                problems.append(f"exit code {code} at the end\n{daemon.last_words()}")
    raw = CommittedReader(servers, f"{name}.out", partitions=PARTITIONS, isolation="read_uncommitted")
    count = sum(1 for _ in raw.until(end_offsets(servers, f"{name}.out", partitions=PARTITIONS)))
    raw.close()
    say(f"answers in aborted transactions, which no read_committed reader saw: {count - follower.count}")
    if count == follower.count:
        problems.append("the kill -9 aborted nothing, and so proves little")
    return problems


def _alive(daemon: RunningDaemon) -> None:
    assert daemon.exit_code is None, f"the daemon ended with code {daemon.exit_code}\n{daemon.last_words()}"


@contextmanager
def some_broker(given: str | None, folder: Path, name: str) -> Iterator[str]:
    """The broker given, cleared of our topics afterwards, or one of our own, removed afterwards."""
    if given:
        try:
            yield given
        finally:
            delete_topics(given, f"{name}.", name)
        return
    development = DevBroker(folder / "broker")
    try:
        yield development.up(port=0)
    finally:
        development.down(wipe=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--share", type=float, default=1.0, help="of the customers (1.0)")
    parser.add_argument("--bootstrap-servers", help="a broker that runs; without, one is started here")
    parser.add_argument("--client", choices=("both", *CLIENTS), default="both", help="the daemon's Kafka client (both)")
    options = parser.parse_args(arguments)
    if not 0 < options.share <= 1:
        parser.error("--share should be above 0 and at most 1")
    codes = [
        _check(options.share, options.bootstrap_servers, client)
        for client in CLIENTS
        if options.client in ("both", client)
    ]
    return max(codes)


def _check(share: float, bootstrap_servers: str | None, client: str) -> int:
    print(f"client: {client}", flush=True)
    harness.CLIENT = client
    name = f"parity-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory(prefix="lstmstream-parity-") as temporary:
        folder = Path(temporary)
        with some_broker(bootstrap_servers, folder, name) as servers:
            found = check_parity(servers, folder, name, share, lambda line: print(line, flush=True))
    print(*found.lines, sep="\n")
    print("DIFFERENT:" if found.problems else "PARITY", *found.problems, sep="\n")
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
