"""The features of real images: encoded into sharded Zarr v3, read back, and their statistics.

Knows indexes and encoders; no probe and no method.
"""
