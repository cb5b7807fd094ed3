"""Text before it becomes speech: normalising, splitting into sentences, phonemes."""
