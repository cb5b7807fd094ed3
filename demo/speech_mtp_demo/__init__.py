"""The web page of the voice service: a voice chat and plain tabs, mounted beside the API (``speech-mtp demo``)."""
