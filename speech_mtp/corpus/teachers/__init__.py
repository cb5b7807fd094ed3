"""Speech synthesisers that make training data: one file, one plug-in."""
