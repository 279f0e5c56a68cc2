"""From pictures to pixels; vectors of sentences and images, made here or on Ray, and read back as tensors."""
