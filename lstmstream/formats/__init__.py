"""Text and bytes of records to plain values: JSON documents, times, CSV cells."""
