"""``params.yaml`` as typed settings: read once, refused by name, immutable afterwards.

Knows ``catalogue``; imports no torch.
"""
