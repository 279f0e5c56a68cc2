"""Image sources to records: readers, decoding, quarantine."""
