"""Trains the model that `lstmstream demo` serves, `builtin:demo`, on simulated history: a few minutes on a CPU.

    pip install 'lstmstream[train]'
    python examples/demo-model/train.py [OUT]

The history is that of another simulated world (another seed) than the demo's. Its days are split by time: the network
learns from days 0-59; days 60-74 choose epoch and threshold; days 75-89 are only measured. Each customer's transactions
are one sequence from its very first on, as the daemon will see them, cut into pieces for back-propagation while the
state is carried on. Labels are taken as known at once; in life they come days later.

The threshold is the one with the best F1 on days 60-74. On one machine a second run writes the same weights.
"""

from __future__ import annotations

import copy
import datetime as dt
import hashlib
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lstmstream.demo.simulate import DAY_MS, ENTRIES, KINDS, MERCHANTS, START_MS, Transactions, transactions
from lstmstream.demo.tally import average_precision
from lstmstream.model import load_model
from lstmstream.serve.step import OnnxStep, StepInput
from lstmstream.train.export import Category, Elapsed, Encoder, Head, Network, Number, export, lstm_layers

OUT = Path(__file__).parents[2] / "lstmstream" / "models" / "demo.onnx"
SEED, CUSTOMERS, TERMINALS, DAYS = 1000, 4000, 5000, 90
LEARN, CHOOSE = 60, 75  # the days before these
HIDDEN, EPOCHS, BATCH, PIECE = 32, 24, 128, 100
FRAUD_WEIGHT = 2.0  # of a fraud's error against a genuine purchase's
State = tuple[Tensor, Tensor]  # h and c


class Columns:
    """A world's transactions as rows [customer, place in its sequence], padded; `day` is -1 in the padding."""

    def __init__(self, history: Transactions) -> None:
        order = np.lexsort((history.transaction_id, history.customer))
        self.history = history = history[order]
        first = np.append(True, np.diff(history.customer) != 0)
        starts = np.flatnonzero(first)
        self.row = np.cumsum(first) - 1
        self.place = np.arange(len(history)) - starts[self.row]
        elapsed = np.append(np.nan, np.diff(history.time_ms) / 1000)
        elapsed[first] = np.nan
        self.elapsed = elapsed.astype(np.float32)
        self.numbers = np.log1p(np.stack([history.amount, history.distance_km, elapsed], axis=1))
        angle = 2 * np.pi * (history.time_ms % DAY_MS) / DAY_MS
        self.clock = np.stack([np.sin(angle), np.cos(angle)], axis=1)
        self.day = (history.time_ms - START_MS) // DAY_MS

    def tensors(self, centre: np.ndarray, scale: np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Inputs [K, T, 7] in the encoder's order, codes [K, T, 2], labels [K, T], days [K, T]."""
        scaled = np.nan_to_num((self.numbers - centre) / scale)
        flags = np.isnan(self.numbers[:, 1:])  # no distance; the customer's first event
        codes = np.stack([self.history.merchant, self.history.entry], axis=1) + 1  # 0 is for unknown ones
        inputs = np.concatenate([scaled, flags, self.clock], axis=1).astype(np.float32)
        return (
            self._padded(inputs, 0),
            self._padded(codes.astype(np.int64), 0),
            self._padded(self.history.fraud.astype(np.float32), 0),
            self._padded(self.day, -1),
        )

    def _padded(self, values: np.ndarray, padding: int) -> Tensor:
        out = np.full((self.row[-1] + 1, self.place.max() + 1, *values.shape[1:]), padding, values.dtype)
        out[self.row, self.place] = values
        return torch.from_numpy(out)


class Net(nn.Module):  # type: ignore[misc] # torch is not type-checked here
    """Embeddings, one LSTM, one logit."""

    def __init__(self) -> None:
        super().__init__()
        self.merchant, self.entry = nn.Embedding(len(MERCHANTS) + 1, 4), nn.Embedding(len(ENTRIES) + 1, 3)
        self.lstm = nn.LSTM(7 + 4 + 3, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, 1)
        nn.init.constant_(self.head.bias, -4.0)  # fraud is rare: start from there

    def forward(self, inputs: Tensor, codes: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Logits [K, T] and the state after them."""
        row = torch.cat([inputs, self.merchant(codes[..., 0]), self.entry(codes[..., 1])], dim=-1)
        hidden, state = self.lstm(row, state)
        return self.head(hidden)[..., 0], state


def learn(net: Net, data: tuple[Tensor, ...], columns: Columns) -> None:
    """Trains in place; keeps the epoch with the best average precision on the days for choosing."""
    inputs, codes, labels, days = data
    optimiser = torch.optim.Adam(net.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS)
    weight = torch.tensor(FRAUD_WEIGHT)
    best, kept = -1.0, net.state_dict()
    for epoch in range(EPOCHS):
        started = time.monotonic()
        for rows in torch.randperm(len(inputs)).split(BATCH):
            state = None
            learned = (days[rows] >= 0) & (days[rows] < LEARN)
            for start in range(0, int(learned.sum(1).max()), PIECE):
                piece = slice(start, start + PIECE)
                logits, state = net(inputs[rows, piece], codes[rows, piece], state)
                state = tuple(part.detach() for part in state)
                here = learned[:, piece]
                loss = nn.functional.binary_cross_entropy_with_logits(
                    logits[here], labels[rows, piece][here], pos_weight=weight
                )
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimiser.step()
        schedule.step()
        held = (columns.day >= LEARN) & (columns.day < CHOOSE)
        precision = average_precision(score(net, data, columns)[held], columns.history.fraud[held])
        print(
            f"epoch {epoch + 1:2d}  {time.monotonic() - started:4.1f} s  average precision {precision:.3f}", flush=True
        )
        if precision > best:
            best, kept = precision, copy.deepcopy(net.state_dict())
    net.load_state_dict(kept)


def score(net: Net, data: tuple[Tensor, ...], columns: Columns) -> np.ndarray:
    """[N] probabilities in the order of `columns`, each customer's whole sequence at once."""
    with torch.no_grad():
        parts = [net(inputs, codes)[0] for inputs, codes in zip(data[0].split(500), data[1].split(500), strict=True)]
    scores: np.ndarray = torch.sigmoid(torch.cat(parts)).numpy()[columns.row, columns.place]
    return scores


def best_threshold(scores: np.ndarray, fraud: np.ndarray) -> float:
    """The score at which alerting gives the best F1."""
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(fraud[order])
    f1 = 2 * found / (np.arange(1, len(found) + 1) + fraud.sum())
    return float(scores[order[np.argmax(f1)]])


def measure(scores: np.ndarray, history: Transactions, threshold: float) -> dict[str, float]:
    """Average precision, and what alerting at the threshold would have done."""
    alerts, fraud = scores >= np.float32(threshold), history.fraud
    figures = {
        "average_precision": average_precision(scores, fraud),
        "precision": fraud[alerts].mean(),
        "recall": alerts[fraud].mean(),
        **{f"recall_{KINDS[kind]}": alerts[history.kind == kind].mean() for kind in (1, 2, 3)},
        "fraud_share": fraud.mean(),
        "alert_share": alerts.mean(),
    }
    return {name: round(float(value), 4) for name, value in figures.items()}


def histogram(values: np.ndarray, edges: np.ndarray) -> dict[str, list[float]]:
    """Counts between edges; what lies outside counts in the outermost."""
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return {"edges": edges.round(6).tolist(), "counts": counts.tolist()}


def reference(scores: np.ndarray, history: Transactions) -> dict[str, object]:
    """What drift is later compared with: histograms of the score and of each feature."""
    features: dict[str, object] = {}
    for name in ("amount", "distance_km"):
        values = getattr(history, name)
        present = values[~np.isnan(values)]
        edges = np.unique(np.quantile(present, np.linspace(0, 1, 21)).round(2))
        features[name] = histogram(present, edges) | {"missing": int(len(values) - len(present))}
    for name, words in (("merchant", MERCHANTS), ("entry", ENTRIES)):
        counts = np.bincount(getattr(history, name), minlength=len(words)).tolist()
        features[name] = {"values": list(words), "counts": counts}
    return {"score": histogram(scores, np.linspace(0, 1, 51)), "features": features}


def main(out: Path) -> None:
    """Simulates, trains, measures, writes."""
    torch.manual_seed(SEED)
    torch.set_num_threads(
        1
    )  # the number of threads decides the last bits of sums; more do not help a network this small
    torch.use_deterministic_algorithms(mode=True)
    columns = Columns(transactions(customers=CUSTOMERS, terminals=TERMINALS, days=DAYS, seed=SEED))
    history, learned = columns.history, columns.numbers[columns.day < LEARN]
    centre, scale = np.nanmean(learned, axis=0), np.nanstd(learned, axis=0)
    data = columns.tensors(centre, scale)
    print(f"{len(history):,} transactions of {CUSTOMERS:,} customers in {DAYS} days, {history.fraud.mean():.2%} fraud")

    net = Net()
    learn(net, data, columns)
    scores = score(net, data, columns)
    choosing, measured = (columns.day >= LEARN) & (columns.day < CHOOSE), columns.day >= CHOOSE
    threshold = round(best_threshold(scores[choosing], history.fraud[choosing]), 3)
    metrics = {
        "held_back_days_75_to_89": measure(scores[measured], history[measured], threshold),
        "other_world_first_5_days": other_world(net, centre, scale, threshold),
    }
    for where, figures in metrics.items():
        print(where, figures)

    weights = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    numbers = [
        Number(name, float(centre[column]), float(scale[column]), log=True, flag_missing=column == 1)
        for column, name in enumerate(("amount", "distance_km"))
    ]
    tables = [
        Category("merchant", weights["merchant.weight"], vocabulary=MERCHANTS),
        Category("entry", weights["entry.weight"], vocabulary=ENTRIES),
    ]
    elapsed = Elapsed(float(centre[2]), float(scale[2]))
    card = export(
        out,
        Network(
            Encoder(tuple(numbers), tuple(tables), elapsed, hour_of_day=True),
            lstm_layers(weights, "lstm."),
            Head(weights["head.weight"], weights["head.bias"], "sigmoid"),
        ),
        name="card-fraud",
        version="1",
        task="classify",
        threshold=threshold,
        training={
            "data": f"simulated card transactions: {CUSTOMERS} customers, {TERMINALS} terminals, {DAYS} days",
            "data_sha256": hashlib.sha256(
                b"".join(getattr(history, c).tobytes() for c in history.__slots__)
            ).hexdigest(),
            "seed": SEED,
            "split": f"days before {LEARN} learned, before {CHOOSE} epoch and threshold, the rest measured",
            "threshold_rule": f"best F1 on days {LEARN}-{CHOOSE - 1}",
            "metrics": metrics,
            "versions": {"torch": torch.__version__.split("+")[0], "numpy": np.__version__},
            "date": dt.datetime.now(dt.UTC).date().isoformat(),
        },
        reference=reference(scores[choosing], history[choosing]),
    )
    prove(out, scores, columns)
    print(f"{out}: {out.stat().st_size:,} bytes, threshold {threshold}, fingerprint {card.fingerprint}")


def prove(out: Path, scores: np.ndarray, columns: Columns) -> None:
    """Serves the file to some customers, event by event, and compares with the network's `scores`."""
    model = load_model(out)
    step, steps = OnnxStep(model, device="cpu"), 100
    starts = np.searchsorted(columns.row, np.flatnonzero(np.bincount(columns.row) >= steps)[:50])
    state = np.tile(np.array(model.card.state.initial, np.float32), (len(starts), 1))
    worst = 0.0
    for at in (starts + place for place in range(steps)):
        events = columns.history[at]
        x = np.stack([events.amount, events.distance_km], axis=1).astype(np.float32)
        codes = np.stack([events.merchant, events.entry], axis=1).astype(np.int64) + 1
        answer = step.step(StepInput(x, codes, events.time_ms, columns.elapsed[at], state))
        state, worst = answer.state, max(worst, float(np.abs(answer.score - scores[at]).max()))
    print(f"the file against the network, {len(starts)} customers, {steps} events each: {worst:.1e} apart at most")
    if worst > 1e-5:
        raise SystemExit(f"{out}: does not compute what was trained; do not ship it")


def other_world(net: Net, centre: np.ndarray, scale: np.ndarray, threshold: float) -> dict[str, float]:
    """The same figures for customers that the network never saw, from their first event on, as in the demo."""
    columns = Columns(transactions(customers=1000, terminals=2000, days=5, seed=7))
    return measure(score(net, columns.tensors(centre, scale), columns), columns.history, threshold)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
