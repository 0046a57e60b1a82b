"""The loop that every optimising method runs in, and the images that it changes.

Knows no method's mathematics and no test split.
"""
