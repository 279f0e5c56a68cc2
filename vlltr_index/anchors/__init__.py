"""Anchor sentence selection (AnSS), FAISS and exact indexes, and retrieval."""
