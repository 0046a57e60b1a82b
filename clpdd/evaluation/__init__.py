"""Distilled sets, encoders and protocols: what is judged, how, and the tables of it.

The one folder that is handed the test split. Knows no method's mathematics.
"""
