"""`vlltr ui`: a page on which pictures are recognised, answers taken apart, and classes added."""
