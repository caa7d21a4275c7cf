"""The ways to answer a request that are compared, one module each, over the same running server.

Each is an :class:`~echolm_lab.policies.base.AnswerPolicy`.
"""
