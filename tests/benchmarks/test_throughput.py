"""The parts of `make bench` that need no broker: workload, statistics, table, plot, checks, processes, options."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import onnxruntime as ort
import pytest

from benchmarks.throughput import apps, environments, report
from benchmarks.throughput.answers import Check, Sample
from benchmarks.throughput.apps import AT_LEAST_ONCE, EXACTLY_ONCE, Abilities, choose_apps, make_apps
from benchmarks.throughput.environments import BuildFailed, kafka_streams_jars, python_environment
from benchmarks.throughput.latency import sampling_interval
from benchmarks.throughput.latency_reader import SENT_AT
from benchmarks.throughput.measuring import AppFailed, Figures, Point, Window, _figures
from benchmarks.throughput.models import write_models
from benchmarks.throughput.options import parse_options
from benchmarks.throughput.plot import Bar, bar_chart, tick_interval
from benchmarks.throughput.processes import Guard, Program, Usage, usage_of
from benchmarks.throughput.spread import Spread, percentiles_ms
from benchmarks.throughput.workload import FEATURES, Workload

APPS = make_apps(Abilities("lstmstream 0.1.0", workers=False, compiled_codec=False), Path("cache"))


# -- the workload ----------------------------------------------------------------------------------------------------


def test_frequencies_follow_zipf() -> None:
    workload = Workload(50_000, keys=1_000, zipf=0.8)
    keys = [event.key for _, event in workload.make_events()]
    ranked = workload.ranked_keys()
    for rank in (0, 1, 9):
        expected = (rank + 1) ** -0.8 / sum((r + 1) ** -0.8 for r in range(1_000))
        assert keys.count(ranked[rank]) / len(keys) == pytest.approx(expected, rel=0.15)
    assert len(set(keys)) > 990


def test_uniform_and_one_key() -> None:
    uniform = [event.key for _, event in Workload(50_000, keys=100, zipf=0).make_events()]
    counts = [uniform.count(key) for key in set(uniform)]
    assert len(counts) == 100
    assert max(counts) < 1.3 * min(counts)
    assert {event.key for _, event in Workload(100, keys=1, zipf=0).make_events()} == {b"c000000"}


def test_an_event_is_json_of_about_160_bytes_with_its_numbers() -> None:
    sizes = []
    for time_text, event in Workload(1_000).make_events():
        value = event.value(time_text)
        fields = json.loads(value)
        assert [fields[name] for name in FEATURES] == list(event.numbers)
        assert fields["card_id"].encode() == event.key
        assert fields["ts"] == time_text.decode()
        sizes.append(len(value))
    assert 150 <= np.mean(sizes) <= 170


def test_events_are_the_same_in_each_run_and_no_two_share_key_and_time() -> None:
    workload = Workload(100_500, keys=50)  # more than one chunk
    first = [(time_text, event.value(time_text)) for time_text, event in workload.make_events()]
    assert first == [(time_text, event.value(time_text)) for time_text, event in workload.make_events()]
    assert len({time_text for time_text, _ in first}) == len(first)
    assert first[-1][0] == b"2025-06-01T00:33:29.980Z"


# -- models and answers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 2])
def test_the_plain_graph_and_the_products_compute_the_same(tmp_path: Path, layers: int) -> None:
    models = write_models(tmp_path, hidden=8, layers=layers)
    sessions = [ort.InferenceSession(str(path)) for path in (models.product, models.plain)]
    random = np.random.default_rng(0)
    states = [np.zeros((5, models.state_size), np.float32)] * 2
    scores = []
    for _ in range(4):
        x = random.normal(size=(5, len(FEATURES))).astype(np.float32)
        outputs = [
            session.run(["state_out", "score"], {"x": x, "state": state})
            for session, state in zip(sessions, states, strict=True)
        ]
        states = [output[0] for output in outputs]
        np.testing.assert_allclose(outputs[0][1], outputs[1][1], atol=1e-6)
        np.testing.assert_allclose(states[0], states[1], atol=1e-6)
        scores.append(outputs[0][1])
    assert np.ptp(scores) > 0.01  # not all the same


@pytest.fixture
def sample(tmp_path: Path) -> tuple[Sample, dict[bytes, list[tuple[str, float]]]]:
    """A scored sample of 300 events of 3 keys, and each key's answers computed apart from it."""
    workload = Workload(300, keys=3)
    made = Sample(workload)
    model = write_models(tmp_path, hidden=8, layers=1).plain
    session = ort.InferenceSession(str(model))
    states: dict[bytes, Any] = {}
    right: dict[bytes, list[tuple[str, float]]] = {}
    for time_text, event in workload.make_events():
        made.see(time_text, event)
        state = states.get(event.key, np.zeros((1, 16), np.float32))
        inputs = {"x": np.array([event.numbers], np.float32), "state": state}
        states[event.key], score = session.run(["state_out", "score"], inputs)
        right.setdefault(event.key, []).append((time_text.decode(), float(score[0])))
    made.score(model)
    return made, right


def answer(ts: str, score: float, *, daemon: bool = False) -> bytes:
    fields: dict[str, Any] = {"event": {"ts": ts}, "score": score} if daemon else {"ts": ts, "score": score}
    return json.dumps(fields).encode()


def test_right_answers_of_both_forms_pass(sample: Any) -> None:
    made, right = sample
    check = Check()
    for key, answers in right.items():
        values = [answer(*one, daemon=number % 2 == 0) for number, one in enumerate(answers)]
        made.compare(key, values, EXACTLY_ONCE, check)
    assert (check.problems, check.duplicates, check.compared) == ([], 0, 300)


@pytest.mark.parametrize(
    ("change", "guarantee", "problem"),
    [
        (lambda answers: [answers[0], (answers[1][0], answers[1][1] + 1e-4)], EXACTLY_ONCE, "should have"),
        (lambda answers: [answers[0], (answers[1][0], float("nan"))], EXACTLY_ONCE, "should have"),
        (lambda answers: [answers[0], answers[2]], EXACTLY_ONCE, "is missing"),
        (lambda answers: [answers[0], answers[0], answers[1]], EXACTLY_ONCE, "two answers"),
        (lambda answers: [answers[0], answers[0], answers[1]], AT_LEAST_ONCE, None),
    ],
)
def test_wrong_answers_are_found(sample: Any, change: Any, guarantee: str, problem: str | None) -> None:
    made, right = sample
    key, answers = next(iter(right.items()))
    check = Check()
    made.compare(key, [answer(*one) for one in change(answers)], guarantee, check)
    if problem is None:
        assert (check.problems, check.duplicates) == ([], 1)
    else:
        assert problem in check.problems[0]


# -- measuring -------------------------------------------------------------------------------------------------------


def points(*seen: tuple[float, int]) -> list[Point]:
    """Half a core of the app, a quarter of the broker, one of the whole machine."""
    return [Point(s, records, Usage(s / 2, 2**20), s / 4, s) for s, records in seen]


def test_the_rate_is_taken_between_two_commits_after_the_warm_up() -> None:
    seen = points((100.0, 10), (101.0, 500), (102.0, 1_000), (107.0, 6_000))
    found = _figures(APPS[0], 3, seen, Window(warm_s=2, length_s=4), 10**6)
    assert found.events_per_s == pytest.approx(1_000)
    assert found.cpu_s_per_million == pytest.approx(0.5 * 5 / 5_000 * 1e6)
    assert (found.app_cores, found.broker_cores, found.other_cores) == pytest.approx((0.5, 0.25, 0.25))
    assert found.broker_share == pytest.approx(1 / 3)
    assert found.round == 3
    assert found.window_s == pytest.approx(5)


def test_an_input_that_is_read_within_the_warm_up_gives_a_figure_too() -> None:
    seen = points((0.0, 100), (0.5, 2_500), (1.0, 5_000), (1.5, 7_500))
    found = _figures(APPS[0], 0, seen, Window(warm_s=2, length_s=4), 10_000)
    assert found.events_per_s == pytest.approx(5_000)


def test_a_single_commit_gives_no_figure() -> None:
    with pytest.raises(AppFailed, match="committed 1 times only"):
        _figures(APPS[0], 0, points((0.0, 100)), Window(warm_s=2, length_s=4), 10_000)


def test_usage_counts_children() -> None:
    burn = "import time\nwhile time.process_time() < 0.4: pass\n"
    code = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {burn!r}])\nprint('done', flush=True)\n"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "done\n"
    used = usage_of(process.pid)
    process.communicate("\n", timeout=120)
    assert used.cpu_s >= 0.35
    assert used.peak_rss_bytes > 2**20


def test_what_was_started_ends_with_the_benchmark_even_by_sigkill(tmp_path: Path) -> None:
    pid_file, guarded = tmp_path / "pid", tmp_path / "guarded"
    script = f"setsid sh -c 'echo $$ > {pid_file}; sleep 120' & sleep 120"  # as a supervisor with a worker
    code = (
        "import sys, time, pathlib\n"
        "from benchmarks.throughput.processes import Guard, Program\n"
        "with Guard() as guard:\n"
        f"    Program(['sh', '-c', {script!r}], {{}}, pathlib.Path({str(tmp_path / 'log')!r}), guard)\n"
        f"    pathlib.Path({str(guarded)!r}).touch()\n"
        "    time.sleep(120)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    wait_until(lambda: guarded.exists() and pid_file.exists() and pid_file.read_text() != "")
    pid = int(pid_file.read_text())
    process.send_signal(signal.SIGKILL)
    process.wait(120)
    wait_until(lambda: not is_alive(pid))


@pytest.mark.parametrize("leader", ["", "setsid"])  # of the same process group, and of another
def test_a_program_is_ended_with_its_children(tmp_path: Path, leader: str) -> None:
    script = f"{leader} sh -c 'echo $$ > pid; sleep 120' & sleep 120"
    with Guard() as guard, Program(["sh", "-c", f"cd {tmp_path}; {script}"], {}, tmp_path / "log", guard):
        wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
        pid = int((tmp_path / "pid").read_text())
        assert is_alive(pid)
    wait_until(lambda: not is_alive(pid))


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


# -- statistics and reports ------------------------------------------------------------------------------------------


def test_spread_is_median_and_range() -> None:
    spread = Spread.of([3.0, 1.0, 10.0, 2.0, 2.5])
    assert spread == Spread(2.5, 1.0, 10.0)
    assert spread.text(lambda value: f"{value:.1f}") == "2.5 (1.0 to 10.0)"
    assert Spread.of([2.0]).text(lambda value: f"{value:.1f}") == "2.0"


def test_percentiles_of_latencies_are_in_ms() -> None:
    found = percentiles_ms(np.arange(1, 1_001) / 1000)  # 1 to 1,000 ms
    assert found["p50"] == pytest.approx(500.5)
    assert found["p99"] == pytest.approx(990.0, abs=0.1)
    assert found["p99.9"] == pytest.approx(999.0, abs=0.1)
    assert found["max"] == 1000


def test_the_reader_finds_the_time_of_sending_in_both_forms_of_answers() -> None:
    sent_at = "1764161234.123456"
    for value in (answer(sent_at, 0.5), answer(sent_at, 0.5, daemon=True)):
        compact = value.replace(b": ", b":")
        for text in (value, compact):
            found = SENT_AT.search(text)
            assert found is not None
            assert found[1].decode() == sent_at
    assert (sampling_interval(2_000), sampling_interval(90_000)) == (1, 4)


def figures(app: str, number: int, rate: float) -> Figures:
    return Figures(app, number, rate, 10.0, 100.0, 1.0, 0.5, 0.1, 10.0, 2.0)


def test_the_table_names_every_app_and_compares_within_a_round() -> None:
    fast, slow, reference = APPS[0], APPS[-3], APPS[-1]
    found = [
        figures(fast.name, 0, 50_000), figures(fast.name, 1, 60_000),
        figures(slow.name, 1, 1_000),
        figures(reference.name, 0, 100_000), figures(reference.name, 1, 200_000),
    ]  # fmt: skip
    summaries = report.summarize(APPS, found)
    assert [summary.app.name for summary in summaries] == [reference.name, fast.name, slow.name]
    ratios = {summary.app.name: summary.ratio for summary in summaries}
    assert ratios[fast.name] == Spread(0.4, 0.3, 0.5)
    assert ratios[slow.name] == Spread.of([0.005])
    failed = APPS[1]
    table = report.throughput_table(APPS, summaries, {failed.name: ["cannot be built: pip: no | network"]})
    lines = table.splitlines()
    assert len(lines) == 2 + len(APPS)
    assert len({line.count("|") for line in lines}) == 1
    assert "55,000 (50,000 to 60,000) | 0.40 (0.30 to 0.50)" in table
    assert "not measured: cannot be built: pip: no / network" in table
    assert "not measured: was not run: the time was up" in table


def test_the_whole_report_has_each_section() -> None:
    result = {
        "date": "2026-01-01 12:00",
        "machine": {"processor": "CPU", "cores": 2},
        "workload": {"events": 1000, "event_bytes": 160, "keys": 1, "zipf": 0.0, "partitions": 4, "hidden": 8}
        | {"layers": 1, "rounds": 1, "quick": False},
        "versions": {"Python": "3.11"},
        "problems": ["an app is wrong"],
    }
    latency = {"app": APPS[0].name, "events_per_s": 2000, "answered_share": 1.0, "cores": 0.25}
    latency |= {"broker_cores": 0.5, "machine_cores": 1.75}
    latency["latency_ms"] = {"p50": 1.0, "p99": 2.0, "p99.9": 3.0, "max": 1234.5}
    idle = {"app": APPS[0].name, "cores": 0.01, "broker_cores": 0.02}
    text = report.markdown(
        result, [("Latency", report.latency_table(APPS, [latency])), ("Idle", report.idle_table(APPS, [idle]))]
    )
    assert "Events of 160 bytes, one key (uniform)" in text
    assert "A topic of 1,000 events; one round." in text
    assert "| 2,000 | 100 % | 1.0 | 2.0 | 3.0 | 1,234.5 | 0.25 | 0.50 | 1.75 |" in text
    assert "| 0.0100 | 0.0200 |" in text
    assert "- an app is wrong" in text


def test_the_plot_is_well_formed_and_to_scale() -> None:
    bars = [Bar("a & b <c>", Spread(100.0, 80.0, 200.0), "own"), Bar("d", Spread(50.0, 50.0, 50.0), "other")]
    root = ET.fromstring(bar_chart("Events & more", "note", bars))
    space = "{http://www.w3.org/2000/svg}"
    widths = {rect.get("class"): float(rect.get("width", "0")) for rect in root.iter(f"{space}rect")}
    assert widths["own"] == pytest.approx(2 * widths["other"], rel=0.01)
    texts = [text.text for text in root.iter(f"{space}text")]
    assert "a & b <c>" in texts
    assert len(list(root.iter(f"{space}path"))) == 1  # a range only where there is one
    width = float(root.get("width", "0"))
    assert all(float(text.get("x", "0")) <= width for text in root.iter(f"{space}text"))
    assert "prefers-color-scheme: dark" in (root.findtext(f"{space}style") or "")


@pytest.mark.parametrize("largest", [0.7, 9, 10, 99, 12_345, 400_000])
def test_ticks_are_few_and_round(largest: float) -> None:
    interval = tick_interval(largest)
    assert 3 < largest / interval <= 10
    assert f"{interval:e}"[0] in "125"


# -- apps, environments, options -------------------------------------------------------------------------------------


def test_an_ability_that_the_daemon_lacks_is_not_an_app(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(codec: str, workers: str) -> Abilities:
        texts = {"--version": f"lstmstream 0.1.0\n{codec}", "run": f"Options:\n --workers <int>  {workers}"}
        monkeypatch.setattr(apps, "_output", lambda *arguments: texts[arguments[0]])
        return apps.find_abilities()

    old = version("", "Not implemented\n   yet; start several daemons.")
    assert (old.workers, old.compiled_codec) == (False, False)
    new = version("codec: compiled", "Number of processes.")
    assert (new.workers, new.compiled_codec) == (True, True)
    assert not version("codec: pure Python", "").compiled_codec
    names = {app.name for app in make_apps(new, Path())} - {app.name for app in make_apps(old, Path())}
    assert names == {
        f"lstmstream-exactly-once-{client}-{suffix}"
        for client in ("confluent", "kafka-python")
        for suffix in ("2-workers", "pure")
    }


def test_the_installed_daemon_can_be_asked() -> None:
    assert apps.find_abilities().version.startswith("lstmstream ")


def test_apps_are_chosen_by_the_beginning_of_their_names() -> None:
    assert {app.guarantee for app in choose_apps(APPS, "lstmstream-at-least")} == {AT_LEAST_ONCE}
    assert [app.name for app in choose_apps(APPS, "reference, quix")] == ["quix-streams", "reference"]
    with_states = "lstmstream-exactly-once-kafka-python-checkpoints"
    assert [app.name for app in choose_apps(APPS, with_states)] == [with_states]
    assert [app.name for app in choose_apps(APPS, "lstmstream-exactly-once-kafka-python")] == [with_states[:-12]]
    assert with_states not in [app.name for app in choose_apps(APPS, None)]
    with pytest.raises(ValueError, match="no app is called flink; there are: lstmstream-exactly-once-confluent"):
        choose_apps(APPS, "reference,flink")


def test_a_peer_that_cannot_be_built_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = tmp_path / "peer.txt"
    requirements.write_text("this is not a requirement\n")
    with pytest.raises(BuildFailed, match=r"python: ERROR: Invalid requirement"):
        python_environment(requirements, tmp_path / "cache")
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(BuildFailed, match="Java and Maven are needed"):
        kafka_streams_jars(environments.PEERS / "kafka-streams", tmp_path / "cache")


def test_an_environment_is_made_once_and_anew_for_other_requirements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[Any] = []

    def run(command: Any) -> None:  # a real virtual environment takes seconds
        commands.append(command)
        if command[2] == "venv":
            Path(command[-1]).mkdir(parents=True)

    monkeypatch.setattr(environments, "_run", run)
    requirements = tmp_path / "peer.txt"
    requirements.write_text("numpy")
    python = python_environment(requirements, tmp_path / "cache")
    assert [command[2] for command in commands] == ["venv", "pip"]
    assert python_environment(requirements, tmp_path / "cache") == python
    assert len(commands) == 2
    requirements.write_text("numpy>=2")
    assert python_environment(requirements, tmp_path / "cache") != python
    assert len(commands) == 4


def test_every_peer_has_its_program() -> None:
    for requirements in environments.PEERS.glob("*.txt"):
        assert requirements.with_suffix(".py").is_file()


def test_variables_of_the_users_shell_do_not_change_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSTMSTREAM_BATCH__MAX_EVENTS", "1")
    code = "import os; print({k for k in os.environ if k.startswith('LSTMSTREAM_')})"
    with Guard() as guard:
        program = Program([sys.executable, "-c", code], {"LSTMSTREAM_CODEC": "pure"}, tmp_path / "log", guard)
        wait_until(lambda: program.exit_code is not None)
        program.end()
    assert program.last_words() == "{'LSTMSTREAM_CODEC'}"


def test_options() -> None:
    quick = parse_options("", ["--quick", "--one-key"])
    assert (quick.rounds, quick.events, quick.keys, quick.zipf) == (1, 600_000, 1, 0.0)
    usual = parse_options("", ["--uniform"])
    assert (usual.rounds, usual.events, usual.keys, usual.zipf) == (5, 3_000_000, 100_000, 0.0)
    with pytest.raises(SystemExit):
        parse_options("", ["--events", "0"])
