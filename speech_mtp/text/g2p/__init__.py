"""Grapheme-to-phoneme front ends: one file, one plug-in (``speech_mtp.text.g2p.base.G2P``)."""
