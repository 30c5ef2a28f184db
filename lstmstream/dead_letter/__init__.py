"""`lstmstream dead-letter`: look at the events that have no prediction, and replay them, never twice."""
