"""What the demo shows: a live table on a terminal, plain lines elsewhere, and a summary at the end."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lstmstream.demo.scenario import Scenario
from lstmstream.demo.tally import RECENT, Alert, Errors, Snapshot, Tally
from lstmstream.wording import counted

_LINE_INTERVAL_S = 1.0  # between two lines where there is no terminal


class Display:
    """A context manager: inside it, `show` refreshes the live table or prints a line every second."""

    def __init__(self, scenario: Scenario, *, events: int | None, page: str) -> None:
        self._scenario = scenario
        self._kinds = tuple(scenario.kinds)
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._events, self._page = events, page
        self._next_line = 0.0
        self._alerts_shown = 0

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def note(self, text: str) -> None:
        """Print one line that stays on the screen."""
        self._console.print(Text(text), soft_wrap=True)

    def problem(self, text: str) -> None:
        """Print one line to standard error."""
        print(text, file=sys.stderr, flush=True)

    def show(self, now: Snapshot) -> None:
        """Show the state of the stream."""
        if self._live:
            alerts = () if self._scenario.forecast else (self._alerts(now.last_alerts),)
            self._live.update(Group(self._progress(now), *alerts), refresh=True)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _LINE_INTERVAL_S
            self.note(
                f"{now.seconds:6.1f} s  {now.predictions:,} of {now.sent:,} events scored, {now.rate:,.0f}/s, "
                f"p50 {_ms(now.p50)} p99 {_ms(now.p99)} (last {RECENT:,} predictions), {counted(now.keys, 'key')}, "
                + self._outcome(now)
            )
            new = min(now.alerts - self._alerts_shown, 2)
            self._alerts_shown = now.alerts
            for alert in reversed(now.last_alerts[:new]):
                self.note(
                    f"          alert {alert.key} score {alert.score:.3f} {alert.shown:,.2f}: {self._label(alert)}"
                )

    def _progress(self, now: Snapshot) -> Panel:
        table = Table.grid(padding=(0, 3))
        limit = f" of {self._events:,}" if self._events else ""
        table.add_row("events", f"{now.sent:,} sent", f"{now.predictions:,}{limit} scored", f"{now.rate:,.0f}/s")
        table.add_row(
            "latency",
            f"p50 {_ms(now.p50)}",
            f"p99 {_ms(now.p99)}",
            f"from sending an event to reading its prediction, last {RECENT:,} predictions",
        )
        table.add_row("state", counted(now.keys, "key"), counted(now.dead_letters, "dead letter"), "")
        table.add_row("model", self._outcome(now), "", self._page)
        return Panel(table, title=f"lstmstream demo, {now.seconds:.0f} s", subtitle="Ctrl-C to stop")

    def _outcome(self, now: Snapshot) -> str:
        if self._scenario.forecast:
            return _errors(now.errors, self._scenario.shown)
        return f"{counted(now.alerts, 'alert')}, {now.true_alerts:,} of them true"

    def summary(self, tally: Tally, *, first_prediction: float | None, dead_letter_reason: str) -> None:
        """Show the numbers of the whole demo. `first_prediction`: seconds from the start of the command."""
        quality, (p50, p99) = tally.quality(), tally.latency()
        records = f"{counted(tally.predictions, 'prediction')}, {counted(tally.dead_letters, 'dead letter')}"
        self.note(f"\n{counted(tally.sent, 'event')}: {records}, {counted(tally.duplicates, 'duplicate')}")
        if dead_letter_reason:
            self.note(f"reason of the newest dead letter: {dead_letter_reason}")
        if not tally.predictions:
            return
        if first_prediction is not None:
            self.note(f"first prediction {first_prediction:.1f} s after the start of the command")
        self.note(
            f"throughput {tally.throughput():,.0f} events/s, latency p50 {_ms(p50)}, p99 {_ms(p99)}, over the whole run"
        )
        if self._scenario.forecast:
            self.note(f"{tally.errors().count:,} forecasts: {_errors(tally.errors(), self._scenario.shown)}")
            return
        incidents = f"{sum(quality.counts[1:]):,} {self._scenario.incident}s"
        events = quality.average_precision  # NaN where an incident is more than one event
        self.note(
            f"{counted(quality.alerts, 'alert')}, {incidents}: precision {_percent(quality.precision)}, "
            f"recall {_percent(quality.recall)}"
            + ("" if math.isnan(events) else f", average precision {_percent(events)}")
        )
        for kind, (name, meaning) in enumerate(self._scenario.kinds.items()):
            found, count = quality.alerted[kind], quality.counts[kind]
            if kind:
                share = _percent(found / count if count else math.nan)
                self.note(f"  {name:<11} {found:,} of {count:,} found ({share}): {meaning}")

    def _alerts(self, alerts: tuple[Alert, ...]) -> Table:
        columns = (self._scenario.key, "event", self._scenario.shown, "score", "label")
        table = Table(*columns, title="newest alerts", expand=True)
        for alert in alerts:
            label = Text(self._label(alert), style="green" if alert.kind else "red")
            table.add_row(alert.key, f"{alert.steps:,}", f"{alert.shown:,.2f}", f"{alert.score:.3f}", label)
        return table

    def _label(self, alert: Alert) -> str:
        name = self._kinds[alert.kind]
        return f"{self._scenario.incident} ({name})" if alert.kind else f"{name} (false alarm)"


def _errors(errors: Errors, unit: str) -> str:
    return f"forecasts off by {errors.model:.3f} {unit}, the last value by {errors.last_value:.3f}"


def _ms(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.0f} ms"


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:.0%}"
