"""`lstmstream verify`: recompute each event's prediction from the input, and compare it with what was published."""
