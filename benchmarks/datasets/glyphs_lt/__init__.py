"""Glyphs-LT and the weights for `vlltr-tiny`: from fonts and the Unicode data to files in `recipes/glyphs_lt`."""
