"""The index of labelled images and how it is read: checks, splits, decoding.

Knows storage, and no features, encoder or method.
"""
