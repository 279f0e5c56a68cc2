"""Export a workspace as a folder, read such a folder, and push it to the hub."""
