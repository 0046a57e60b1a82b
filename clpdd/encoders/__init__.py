"""Frozen encoders: architectures, weights, precision, and how they are called.

Knows no features on disk, no probe and no method.
"""
