"""`python -m vlltr_index.cli` is `vlltr`."""

from __future__ import annotations

from vlltr_index.cli.main import main

if __name__ == "__main__":
    main()
