"""What is promised about data that is lost or damaged, tried out."""
