"""Photos-LT: from the photographs in two Debian packages to a folder that `vlltr fit` reads."""
