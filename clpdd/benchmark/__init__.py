"""Methods against each other: accuracy by the clock and by steps, memory and encoder passes, on one machine.

A job is one distillation: a method (or a variant of it), images per class and a seed. It runs in a process of its
own, keeps its images at points of a grid, and every point is judged by the evaluation's own protocols. Knows
everything below ``stages`` and the stages themselves.
"""
