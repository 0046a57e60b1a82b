"""READ THIS FIRST: one file per stage, in the order of ``dvc.yaml``.

inputs, index, cache, kernels, distill, evaluate, report; ``project`` is what they are given. Knows everything but the
command line, the benchmark and the notebook's ``Workspace``.
"""
