"""Protocols for Places-LT."""
