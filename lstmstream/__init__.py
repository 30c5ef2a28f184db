"""Score a live Kafka stream with a recurrent model that remembers every key."""

__version__ = "0.1.0"
