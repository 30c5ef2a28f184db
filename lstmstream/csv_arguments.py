"""The options of the command line that say how a CSV file is written."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

DelimiterOption = Annotated[
    Literal[",", ";", "|", "tab"] | None,
    typer.Option(help="What separates the cells of CSV. Default: found from its header."),
]
DecimalOption = Annotated[
    Literal["point", "comma"] | None,
    typer.Option(help="What separates the decimals of CSV. Default: a point; in files with ; found from the numbers."),
]
