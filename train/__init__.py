"""Training: data, sampling, the first stage (CVLP), recognition (LGR), baselines, checkpoints."""
