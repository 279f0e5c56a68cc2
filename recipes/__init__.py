"""Named protocols: one folder a data set, one TOML file a protocol."""
