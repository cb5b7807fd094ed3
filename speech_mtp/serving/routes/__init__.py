"""The protocols, one module each; all of them stand on :mod:`speech_mtp.serving.service`."""
