"""`lstmstream init`: looks at the records of a topic, and proposes configurations for them."""
