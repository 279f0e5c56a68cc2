"""Anchor bank, LGR, the generative visual model, fusion and explanation: tensors in, tensors out."""
