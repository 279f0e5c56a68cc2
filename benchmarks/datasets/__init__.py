"""How Glyphs-LT and Icons-LT were made: what lies in `recipes/` is written by the modules here."""
