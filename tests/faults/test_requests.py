"""Single requests that are lost, late or answered to nobody, by type: each event is answered once all the same."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.broker.harness import RunningDaemon
from tests.broker.proxy import Action, Api, Fault, KafkaProxy
from tests.faults.trial import Trial

PARTITIONS = 4
RATE = 200
ACTIONS = (Action.DELAY, Action.SWALLOW, Action.LOSE_ANSWER, Action.CUT, Action.CUT_AFTER)
STRIKES = 2  # of each action
LATE_S = (0.5, 14.0)  # up to beyond every time limit of a transaction
APIS = (
    Api.END_TXN,
    Api.TXN_OFFSET_COMMIT,
    Api.ADD_OFFSETS_TO_TXN,
    Api.PRODUCE,
    Api.HEARTBEAT,
    Api.FETCH,
    Api.METADATA,
)


@contextmanager
def faulty_trial(broker: str, name: str, folder: Path, seed: int) -> Iterator[tuple[Trial, KafkaProxy, RunningDaemon]]:
    """A daemon behind the proxy under load; at the end everything is answered and judged."""
    with (
        Trial(broker, name, folder, partitions=PARTITIONS, rate=RATE, seed=seed) as trial,
        KafkaProxy(broker) as proxy,
        RunningDaemon(behind(proxy, trial.config), folder / "log") as daemon,
    ):
        daemon.wait_ready()
        trial.begin()
        trial.wait_answered(daemon, "the first events")
        yield trial, proxy, daemon
        trial.settle(daemon.wait)
        assert daemon.sigterm() == 0, daemon.last_words()
        assert not (findings := trial.judge()), "\n".join(findings)


def behind(proxy: KafkaProxy, config: Path) -> Path:
    """The same configuration with the proxy's address; the judges go to the broker itself."""
    settings = yaml.safe_load(config.read_text())
    settings["kafka"]["bootstrap_servers"] = proxy.servers
    changed = config.with_name("behind-proxy.yaml")
    changed.write_text(yaml.safe_dump(settings))
    return changed


def begin(proxy: KafkaProxy, action: Action, api: Api, client_id: str, late_s: float) -> Fault:
    if action is Action.DELAY:
        return proxy.delay(api, late_s, times=STRIKES, client=client_id)
    if action is Action.SWALLOW:
        return proxy.swallow(api, times=STRIKES, client=client_id)
    if action is Action.LOSE_ANSWER:
        return proxy.lose_answer(api, times=STRIKES, client=client_id)
    return proxy.cut(api, after=action is Action.CUT_AFTER, times=STRIKES, client=client_id)


@pytest.mark.parametrize("api", APIS, ids=lambda api: api.name.lower())
def test_requests_of_one_type(broker: str, topic_prefix: str, tmp_path: Path, seed: int, api: Api) -> None:
    source = random.Random(seed)
    with faulty_trial(broker, topic_prefix, tmp_path, seed) as (trial, proxy, daemon):
        for action in source.sample(ACTIONS, len(ACTIONS)):
            late_s = source.uniform(*LATE_S)
            fault = begin(proxy, action, api, f"lstmstream-{topic_prefix}", late_s)
            daemon.wait(lambda fault=fault: bool(fault.struck), f"struck by {action.value} of {api.name}")
            trial.wait_answered(daemon, f"{action.value} of {api.name}, {late_s:.1f} s, seed {seed}")
            fault.lift()


@pytest.mark.short_fault
def test_the_end_of_a_transaction_arrives_after_its_sender_gave_up(
    broker: str, topic_prefix: str, tmp_path: Path, seed: int
) -> None:
    """It must not end the next transaction (KAFKA-17754); the one that it was for is judged by its nonce."""
    with faulty_trial(broker, topic_prefix, tmp_path, seed) as (trial, proxy, daemon):
        fault = proxy.delay(Api.END_TXN, 9.0, times=1, client=f"lstmstream-{topic_prefix}")
        daemon.wait(lambda: bool(fault.struck), "struck")
        trial.wait_answered(daemon, "the late end")
