"""What to look at next (`vlltr review`): one list of pictures in the order in which looking at them pays."""
