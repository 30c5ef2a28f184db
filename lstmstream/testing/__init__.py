"""Tools for testing a configuration and a model without a broker. Public: names change with a major version only."""

from lstmstream.testing.driver import DeadLetter, Output, TestDriver

__all__ = ["DeadLetter", "Output", "TestDriver"]
