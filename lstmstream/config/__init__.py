"""The configuration: one YAML file and the environment. Every option is described once, in `schema` or `properties`.

`load_config` tells everything that is wrong at once, each fault as `path: what is wrong; remedy`, and never a secret.
It knows nothing of brokers or models: what can only be known by asking them is for `lstmstream check`.

- Durations need a unit: `250ms`, `30s`, `5m`, `1h30m`, `7d`, in whole milliseconds; only 0 may go without.
- Sizes: `10MB` (10^7), `64KiB` (2^16), or a plain number of bytes.
- An empty value (`key:`, or an empty variable) is the same as leaving the key out.
- `LSTMSTREAM_KAFKA__CLIENT` overrides `kafka.client`, `LSTMSTREAM__DELIVERY` the top-level `delivery`,
  `LSTMSTREAM_KAFKA__PROPERTIES__SESSION_TIMEOUT_MS` the property `session.timeout.ms`. With `_FILE` at its end the
  variable names a file that holds the value; one line end at the file's end does not count.
- Paths in the file are relative to its folder.
"""

from __future__ import annotations

from lstmstream.config.load import load_config
from lstmstream.config.schema import Config, Option, Security, options

__all__ = ["Config", "Option", "Security", "load_config", "options"]
