"""What each command runs: one function a command, one commit."""
