"""Predict classes of images and explain the answers; search, and exported models."""
