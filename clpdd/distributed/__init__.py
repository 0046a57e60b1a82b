"""Processes that share one piece of work: how they start, communicate, and hold a folder together.

Knows no images and no features.
"""
