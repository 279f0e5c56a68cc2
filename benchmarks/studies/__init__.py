"""How right the answers are: a module or a folder a study, and what several of them use."""
