"""Protocols for ImageNet-LT."""
