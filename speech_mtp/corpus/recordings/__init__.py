"""Folders of recordings with their texts: one layout, one plug-in."""
