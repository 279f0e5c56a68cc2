"""Pictures and texts from outside: readers, Wikipedia, prompts, splitting, decoding."""
