"""Small encoder configurations of our own, registered with open_clip."""
