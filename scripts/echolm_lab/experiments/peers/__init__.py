"""Other ways to stand in front of LLMs, each run as its own project ships it, beside EchoLM.

One file a peer, one protocol (:class:`~echolm_lab.experiments.peers.base.Peer`); ``catalogue``
lists them. All call the same dummy LLM, and those that embed call the same embedding server.
"""
