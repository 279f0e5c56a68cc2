"""Collections that studies draw: classes with training and test pictures and sentences, by source, size and seed."""
