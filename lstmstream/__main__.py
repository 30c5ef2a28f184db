"""`python -m lstmstream` is the `lstmstream` command."""

from lstmstream.cli import main

main()
