"""READ THIS FIRST: one file per stage, in the order of ``dvc.yaml``.

index, cache, kernels, distill, evaluate, report; ``project`` is what all of them are given. Knows everything but the
command line, the benchmark and the notebook's ``Workspace``.
"""
