"""The page at `/`: one HTML file that loads nothing else; the figures come from `/live/events`."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

from lstmstream import __version__


@cache
def live_page() -> tuple[str, str]:
    """The page, and its content security policy: nothing runs in it but its own two scripts and styles."""
    styles = [_static("uPlot.min.css"), _static("page.css")]
    scripts = [_static("uPlot.iife.min.js"), _static("page.js")]
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_digest, scripts))}; style-src {' '.join(map(_digest, styles))};"
        " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    page = (
        _static("page.html")
        .replace("<!-- version -->", __version__)
        .replace("<!-- license -->", _static("uPlot.LICENSE"))
        .replace("<!-- styles -->", "\n".join(f"<style>{style}</style>" for style in styles))
        .replace("<!-- scripts -->", "\n".join(f"<script>{script}</script>" for script in scripts))
    )
    return page, policy


def _static(name: str) -> str:
    return files("lstmstream").joinpath("static", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
