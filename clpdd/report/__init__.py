"""Results as one page and as a table.

Reads artifacts and settings; calls no encoder.
"""
