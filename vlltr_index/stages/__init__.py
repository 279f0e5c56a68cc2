"""What the commands run: each stage reads a workspace, works, and commits once."""
