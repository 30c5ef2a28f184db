"""`lstmstream run --workers N`: one process that starts N daemons, restarts them, and has one set of endpoints for all.

The daemons are members of one consumer group, so Kafka divides the partitions among them; nothing else is shared.
`process` is one of them, seen from outside; `supervisor` starts and stops them; `pages` asks them and answers HTTP;
`metrics` adds theirs up. Their own side is `lstmstream.serve.worker`.

The parent loads neither a model nor a Kafka client: it must not fail for the reasons for which a worker may.
"""
