"""Sharing a model: exporting a workspace as a folder, reading such a folder, and the hub."""
