"""One file per layout that images come in.

Knows how to list and open images; nothing of features, encoders or tensors.
"""
