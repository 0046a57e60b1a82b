"""Everything on a real CUDA device: ``python -m tests.gpu``."""
