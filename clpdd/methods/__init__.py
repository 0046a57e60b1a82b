"""One file per method, and what those that optimise share.

Knows everything a distillation may use; there is no test split in that.
"""
