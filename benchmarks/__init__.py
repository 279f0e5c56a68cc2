"""Programs that measure; their results are committed under `benchmarks/results`."""
