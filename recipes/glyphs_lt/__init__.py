"""Glyphs-LT: characters as drawn by type designers, a small and naturally long-tailed data set with texts."""
