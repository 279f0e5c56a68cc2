"""Command line: one file a command group; each command parses, makes one library call, and renders."""
