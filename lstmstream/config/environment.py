"""Environment variables that override options: `LSTMSTREAM_<SECTION>__<KEY>`, or the same with `_FILE` at its end."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lstmstream.config.files import UnreadableFile, read_secret
from lstmstream.config.options import Option
from lstmstream.config.paths import PREFIX, set_in
from lstmstream.logs import escape_untrusted


class Overrides(NamedTuple):
    """What the environment did to a tree."""

    sources: dict[str, str]  # path of an option → the variable that set it
    problems: list[str]  # one line for each variable that cannot be used
    files: Mapping[str, Path] = {}  # path of an option → the file that its value was read from


def apply_environment(
    tree: dict[str, Any], options: Iterable[Option], environ: Mapping[str, str], *, refuse_unknown: bool = True
) -> Overrides:
    """Write the values of the variables that name one of `options` into `tree`.

    A variable without a double underscore is ignored: Kubernetes creates `LSTMSTREAM_PORT` and the like. One with it
    that names no option is a problem, or is ignored where `refuse_unknown` is false. An empty value unsets the option.
    """
    known = {option.variable: option for option in options}
    sources: dict[str, str] = {}
    files: dict[str, Path] = {}
    problems: list[str] = []
    for variable in sorted(environ):
        if not variable.startswith(f"{PREFIX}_") or "__" not in variable:
            continue
        base = variable if variable in known else variable.removesuffix("_FILE")
        if base not in known:
            if refuse_unknown:
                near = difflib.get_close_matches(variable, known, n=1)
                remedy = f"did you mean {near[0]}?" if near else "remove it, or use the name of an option"
                problems.append(f"{escape_untrusted(variable)}: does not name an option; {remedy}")
            continue
        value = environ[variable]
        if base != variable:
            if base in environ:
                problems.append(f"{variable}: {base} is set too; keep only one of them")
                continue
            try:
                file = Path(value)
                value = read_secret(file)
            except (UnreadableFile, UnicodeDecodeError) as error:
                reason = error if isinstance(error, UnreadableFile) else "is not UTF-8"
                problems.append(f"{variable}: the file it names {reason}; give the path of a readable file")
                continue
            files[known[base].path] = file.absolute()
        set_in(tree, known[base].keys, value or None)
        sources[known[base].path] = variable
    return Overrides(sources, problems, files)
