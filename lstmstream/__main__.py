"""The `lstmstream` command, which is `python -m lstmstream` too."""

from __future__ import annotations

import signal


def main() -> None:
    """Run the command and exit with its exit code."""
    interrupted = signal.getsignal(signal.SIGINT)
    if interrupted is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while the modules are loaded: the end, and no traceback
    from lstmstream import cli  # noqa: PLC0415 - this takes a moment

    if interrupted is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupted)
    cli.main()


if __name__ == "__main__":
    main()
