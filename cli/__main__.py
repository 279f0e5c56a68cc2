"""Run `vlltr` as `python -m vlltr_index.cli`."""

from __future__ import annotations

from vlltr_index.cli.main import main

if __name__ == "__main__":
    main()
