"""Web page (`vlltr ui`) to recognise pictures, examine answers, and add classes."""
