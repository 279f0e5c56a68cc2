"""Description sources to sentences: readers, splitting, prompts."""
