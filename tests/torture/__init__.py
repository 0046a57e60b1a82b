"""Kill the pipeline again and again, and compare what comes out with an untouched run: ``python -m tests.torture``."""
