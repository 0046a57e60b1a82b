"""Every module of timm by its smallest model: are its own weights taken, at its own image size and at another?

    python -m tests.sweep                      # some ten minutes; rewrites the table in docs/reference/encoders.md
    python -m tests.sweep resnet swin_transformer

Weights are random, saved to a file and loaded as a user loads them; features are compared with timm's own. Nothing is
fetched.
"""
