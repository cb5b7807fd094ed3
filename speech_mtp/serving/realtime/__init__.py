"""One voice conversation over one socket, in the shape of OpenAI's realtime API (GA).

``events`` makes what is sent, ``config`` holds what a client has set, ``ear`` finds turns in what it sends, ``items``
is the conversation, ``response`` one answer, ``session`` joins them. None of them knows models or threads: they ask
the service (:mod:`speech_mtp.serving.service`).
"""
