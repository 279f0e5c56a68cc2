"""How Glyphs-LT and Icons-LT were made, and how Photos-LT is built: its files are not in the repository."""
