"""Speech -> text: recognisers. ``recogniser: {name: faster_whisper}`` means ``speech_mtp/frontends/faster_whisper.py``.

Each is optional and says which extra brings it; :mod:`speech_mtp.frontends.base` tells what they promise.
"""
