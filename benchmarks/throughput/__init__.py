"""The daemon beside other ways to do its work: throughput, CPU, memory and latency on one broker; see __main__.py."""
