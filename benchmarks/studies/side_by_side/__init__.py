"""Two versions of the method on the same draws: the draws as files, and a worker that each version's Python runs."""
