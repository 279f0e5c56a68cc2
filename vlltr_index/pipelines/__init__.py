"""One function a command, which makes one commit and returns a report."""
