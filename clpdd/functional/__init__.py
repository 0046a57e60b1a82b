"""The mathematics: plain tensors in, plain tensors out.

Imports torch and ``clpdd.errors`` alone, and no string in it names a setting.
"""
