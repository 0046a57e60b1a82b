"""How a run shows itself, is stopped, and what machine it runs on.

Decides no byte of any result: no digest of code covers it, and DVC does not watch it.
"""
