"""Serve predictions over HTTP (`vlltr serve`)."""
