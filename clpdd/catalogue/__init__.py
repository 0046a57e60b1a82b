"""What ``params.yaml`` may name: data sets, encoders, methods, protocols.

Data alone: imports nothing of this package but its errors, and no torch.
"""
