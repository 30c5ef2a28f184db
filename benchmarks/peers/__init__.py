"""Other ways to do the daemon's work, each a program of its own with an environment of its own.

All read JSON events with `card_id`, `ts` and 8 numbers, run one step of $MODEL per event with the state of its card,
and write {"card_id", "ts", "score"} under the same key. Settings come from the environment: BOOTSTRAP, INPUT, OUTPUT,
GROUP, MODEL and STATE_DIR.
"""
