"""Files written whole or not at all, locks, partial work, digests.

Knows bytes, and not what they mean.
"""
