"""Several stages in one file (`stages:`): each is a daemon of its own, with the options above it where it has none."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from lstmstream.config.diagnostics import validate
from lstmstream.config.environment import Overrides, apply_environment
from lstmstream.config.options import options_of
from lstmstream.config.places import NOWHERE, Places
from lstmstream.config.schema import Config
from lstmstream.config.types import group_name
from lstmstream.config.yaml_file import read_placed
from lstmstream.errors import CannotServe

OWN = ("model", "model_sha256", "input", "output")  # what only a stage has
OF_STAGE = (*OWN, "name", "alerts", "dead_letter", "state", "batch", "device", "delivery", "on_model_change")
_INSTANCE_ID = "group.instance.id"


class Stage(NamedTuple):
    """One stage and its configuration; `config.name` is that of the file, a dot, and the stage's."""

    name: str
    config: Config


def load_stages(path: Path, environ: Mapping[str, str] = os.environ) -> tuple[Stage, ...]:
    """The stages of the file at `path`, each after those that it reads from; none if it is of a single daemon.

    Raises CannotServe with one line for each fault.
    """
    tree, places = read_placed(path)
    if "stages" not in tree:
        return ()
    return stages_of(tree, path.parent, environ, places)


def stages_of(
    tree: Mapping[str, Any], folder: Path, environ: Mapping[str, str], places: Places = NOWHERE
) -> tuple[Stage, ...]:
    """The same of the content of a file; relative paths start from `folder`. `places`: of its keys, for messages."""
    shared = deepcopy({key: value for key, value in tree.items() if key != "stages"})
    entries = tree["stages"]
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise CannotServe("stages: must be a list of stages, each with a name, model, input and output")
    options = [option for option in options_of(Config).values() if option.keys[0] not in OWN]
    overrides = apply_environment(shared, options, environ)
    problems = list(overrides.problems)
    problems += [f"{key}: belongs to a stage; move it into stages{places.suffix(key)}" for key in OWN if key in shared]
    stages = []
    for number, entry in enumerate(entries):
        try:
            config = _config(shared, entry, folder, number, places, overrides.files)
            stages.append(Stage(str(entry["name"]), config))
        except CannotServe as error:
            problems += [problem for problem in error.problems if problem not in problems]
    problems = list(dict.fromkeys(problems))
    if not problems:
        problems = list(_conflicts(stages, places))
    if problems:
        raise CannotServe(*problems)
    return tuple(_in_order(stages))


def _config(
    shared: Mapping[str, Any],
    entry: Mapping[str, Any],
    folder: Path,
    number: int,
    places: Places,
    files: Mapping[str, Path],
) -> Config:
    """The configuration of one stage. Raises CannotServe, with the paths of its own options below `stages.number`.

    `files`: where options of `shared` were read from.
    """
    path = f"stages.{number}"
    if unknown := [key for key in entry if key not in OF_STAGE]:
        known = ", ".join(sorted(OF_STAGE))
        text = f"is not an option of a stage; known keys here: {known}"
        raise CannotServe(*(f"{path}.{key}: {text}{places.suffix(f'{path}.{key}')}" for key in unknown))
    try:
        name = group_name(str(entry.get("name") or ""))
    except ValueError as error:
        raise CannotServe(f"{path}.name: {error}{places.suffix(f'{path}.name')}") from None
    tree = deepcopy(dict(shared))
    for key, value in entry.items():
        above = tree.get(key)
        both = isinstance(above, dict) and isinstance(value, dict)
        tree[key] = {**above, **deepcopy(value)} if both else deepcopy(value)  # type: ignore[dict-item]
    tree["name"] = f"{shared['name']}.{name}" if isinstance(shared.get("name"), str) else None
    properties = (shared.get("kafka") or {}).get("properties") if isinstance(shared.get("kafka"), dict) else None
    if isinstance(properties, dict) and _INSTANCE_ID in properties:
        tree["kafka"]["properties"][_INSTANCE_ID] = f"{properties[_INSTANCE_ID]}-{name}"
    try:
        return validate(Config, tree, folder, Overrides({}, [], files), places=places.of_stage(number))
    except CannotServe as error:
        own = [key for key in entry if key != "name"] + list(OWN)
        raise CannotServe(
            *(f"{path}.{text}" if text.split(":")[0].split(".")[0] in own else text for text in error.problems)
        ) from None


def feeds(first: Stage, second: Stage) -> bool:
    """Whether the second stage reads what the first one writes."""
    output, topic = first.config.output, second.config.input.topic
    return topic in {output.events.topic, output.topic, output.alerts_topic}


def _conflicts(stages: Sequence[Stage], places: Places) -> Iterator[str]:
    names: dict[str, int] = {}
    states: dict[str, int] = {}
    for number, stage in enumerate(stages):
        first = names.setdefault(stage.name, number)
        if first != number:
            where = places.suffix(f"stages.{number}.name")
            yield f"stages.{number}.name: is the name of stages.{first} too; give each stage its own{where}"
            continue
        first = states.setdefault(stage.config.state.topic.replace(".", "_"), number)
        if first != number:
            where = places.suffix(f"stages.{number}.state.topic")
            yield f"stages.{number}.state.topic: is the topic of stages.{first} too; give each stage its own{where}"
    if len(_in_order(stages)) < len(stages):
        left = [stage.name for stage in stages if stage not in _in_order(stages)]
        yield f"stages: {', '.join(left)} read what they write, in a circle; give one of them another input.topic"


def _in_order(stages: Sequence[Stage]) -> list[Stage]:
    """Each stage after those that feed it, without those in a circle or behind one."""
    done: list[Stage] = []
    while ready := [
        stage for stage in stages if stage not in done and all(other in done for other in stages if feeds(other, stage))
    ]:
        done += ready
    return done
