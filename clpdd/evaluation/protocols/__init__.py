"""One file per protocol: ``train(subject, views)`` gives the probes that are scored.

Knows one set of images with one encoder, and nothing of files.
"""
