"""The configuration: one YAML file and the environment, validated as a whole.

`load_config` reports all faults at once, each as `path: what is wrong; how to fix it`, and never shows a secret. It
asks no broker and opens no model.

- Durations need a unit: `250ms`, `30s`, `5m`, `1h30m`, `7d`, in whole milliseconds; only 0 may go without.
- Sizes: `10MB` (10^7), `64KiB` (2^16), or a plain number of bytes.
- An empty value (`key:`, or an empty variable) is the same as leaving the key out.
- `LSTMSTREAM_KAFKA__CLIENT` overrides `kafka.client`, `LSTMSTREAM__DELIVERY` the top-level `delivery`,
  `LSTMSTREAM_KAFKA__PROPERTIES__SESSION_TIMEOUT_MS` the property `session.timeout.ms`. With `_FILE` at its end the
  variable names a file that holds the value; one newline at the end of the file is dropped.
- Relative paths in the file start from its folder.

The same machinery serves every YAML file of the program: `yaml_file` reads it, `environment` overrides options,
`diagnostics` validates it against a schema (a `Document`), `options` lists what the schema declares. `schema`,
`properties` and `validation` are the daemon's; the training's schema is in `lstmstream.train.schema`.
"""

from __future__ import annotations

from lstmstream.config.load import load_config, options
from lstmstream.config.options import Option
from lstmstream.config.schema import Config, Security
from lstmstream.config.stages import Stage, load_stages

__all__ = ["Config", "Option", "Security", "Stage", "load_config", "load_stages", "options"]
