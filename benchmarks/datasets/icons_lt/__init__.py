"""Icons-LT: from icon sets and WordNet to files in `recipes/icons_lt`."""
