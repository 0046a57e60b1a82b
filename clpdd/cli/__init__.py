"""The ``clpdd`` command: it reads the line, calls a stage, and tells errors plainly.

Nothing else imports it.
"""
