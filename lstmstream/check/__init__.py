"""`lstmstream check`: whether a daemon of a configuration could serve, and what is in its way."""
