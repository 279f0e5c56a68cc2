"""open_clip's models, tokenizers and preprocessing, their weights, and the release's checkpoints."""
