"""The distilled data set: images, labels, the record of how they were made, and its other forms.

Knows no encoder and no method.
"""
