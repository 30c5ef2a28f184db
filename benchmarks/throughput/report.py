"""The results as Markdown: throughput, latency, idle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.throughput.apps import REFERENCE, App
from benchmarks.throughput.measuring import Figures
from benchmarks.throughput.spread import Spread


@dataclass(frozen=True, slots=True)
class Summary:
    """One app over all its rounds."""

    app: App
    rounds: int
    events_per_s: Spread
    ratio: Spread | None  # to the reference loop of the same round
    cpu_s_per_million: Spread
    peak_rss_mib: Spread
    broker_share: Spread
    other_cores: Spread


def summarize(apps: Sequence[App], figures: Sequence[Figures]) -> list[Summary]:
    """The apps that gave figures, the fastest first."""
    reference = {found.round: found.events_per_s for found in figures if found.app == REFERENCE}
    summaries = []
    for app in apps:
        own = [found for found in figures if found.app == app.name]
        if not own:
            continue
        ratios = [found.events_per_s / reference[found.round] for found in own if found.round in reference]
        summaries.append(
            Summary(
                app,
                len(own),
                Spread.of([found.events_per_s for found in own]),
                Spread.of(ratios) if ratios else None,
                Spread.of([found.cpu_s_per_million for found in own]),
                Spread.of([found.peak_rss_mib for found in own]),
                Spread.of([found.broker_share for found in own]),
                Spread.of([found.other_cores for found in own]),
            )
        )
    return sorted(summaries, key=lambda summary: -summary.events_per_s.median)


def throughput_table(apps: Sequence[App], summaries: Sequence[Summary], failures: Mapping[str, Sequence[str]]) -> str:
    """One line per app, the fastest first; an app without figures is named with its reason."""
    titles = ["", "guarantee", "state", "events/s", "ratio to the reference loop", "CPU s per million events"]
    titles += ["peak memory, MiB", "broker's share of CPU", "cores of other programs"]
    lines = _head(titles)
    for found in summaries:
        ratio = "" if found.ratio is None else found.ratio.text(lambda value: f"{value:.2f}")
        cells = (
            found.app.title,
            found.app.guarantee,
            found.app.state,
            found.events_per_s.text(lambda value: f"{value:,.0f}"),
            ratio,
            found.cpu_s_per_million.text(lambda value: f"{value:.1f}"),
            found.peak_rss_mib.text(lambda value: f"{value:,.0f}"),
            found.broker_share.text(lambda value: f"{100 * value:.0f} %"),
            found.other_cores.text(lambda value: f"{value:.2f}"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    measured = {found.app.name for found in summaries}
    for app in apps:
        if app.name not in measured:
            reason = _cell((failures.get(app.name) or ["was not run: the time was up"])[0])
            lines.append(f"| {app.title} | {app.guarantee} | {app.state} | not measured: {reason} | | | | | |")
    return "\n".join(lines)


def latency_table(apps: Sequence[App], found: Sequence[Mapping[str, Any]]) -> str:
    """One line per app and rate."""
    titles = {app.name: (app.title, app.guarantee) for app in apps}
    names = ["", "guarantee", "sent, events/s", "answered", "p50, ms", "p99, ms", "p99.9, ms", "largest, ms"]
    lines = _head([*names, "cores", "broker's cores", "whole machine's cores"])
    for row in found:
        latency = row["latency_ms"]
        cells = (
            *titles[row["app"]],
            f"{row['events_per_s']:,}",
            f"{100 * row['answered_share']:.0f} %",
            *(f"{latency[name]:,.1f}" for name in ("p50", "p99", "p99.9", "max")),
            f"{row['cores']:.2f}",
            f"{row['broker_cores']:.2f}",
            f"{row['machine_cores']:.2f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def idle_table(apps: Sequence[App], found: Sequence[Mapping[str, Any]]) -> str:
    """One line per app."""
    titles = {app.name: (app.title, app.guarantee) for app in apps}
    lines = _head(["", "guarantee", "cores", "broker's cores"])
    lines += [f"| {' | '.join(titles[row['app']])} | {row['cores']:.4f} | {row['broker_cores']:.4f} |" for row in found]
    return "\n".join(lines)


def markdown(result: Mapping[str, Any], sections: Sequence[tuple[str, str]]) -> str:
    """The whole report."""
    machine, load = result["machine"], result["workload"]
    keys = "one key" if load["keys"] == 1 else f"{load['keys']:,} keys"
    spread = "uniform" if load["zipf"] == 0 else f"Zipf {load['zipf']:g}"
    about = (
        f"`python -m benchmarks.throughput`, {result['date']}: {machine['processor']}, {machine['cores']} cores, which"
        f" app, broker and benchmark share. Events of {load['event_bytes']} bytes, {keys}"
        f" ({spread}), {load['partitions']} partitions; an LSTM of {load['layers']} x {load['hidden']} units, the same"
        " weights for all."
    )
    if load["rounds"]:
        rounds = f"{load['rounds']} interleaved rounds: median and range" if load["rounds"] > 1 else "one round"
        about += f" A topic of {load['events']:,} events; {rounds}."
    if load["quick"]:
        about += " A quick run: its figures say little."
    lines = ["# Throughput beside other ways to do the same", "", about]
    for title, text in sections:
        lines += ["", f"## {title}", "", text]
    problems = result["problems"]
    if problems:
        lines += ["", "## Problems", "", *(f"- {problem}" for problem in problems)]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines += ["", f"Versions: {versions}.", ""]
    return "\n".join(lines)


def _head(titles: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(titles)} |".replace("|  |", "| |"), "| --- " * len(titles) + "|"]


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")
