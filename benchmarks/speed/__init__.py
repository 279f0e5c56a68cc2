"""How long each part takes, beside other programs that do the same: a folder a question, and studies of their own."""
