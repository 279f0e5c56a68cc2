"""The vector database: workspace, tables, commits, history and lock."""
