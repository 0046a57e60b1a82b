"""Linear probes: trained on a few images, or on all real features, and scored.

Every function works on a batch of ``P`` probes at once (one for each seed and draw), stored as one ``(P, d, C)``
tensor: a probe is small, and on any device one batched product is far quicker than ``P`` loops. Probes never mix:
each one has its own stream of random numbers and comes out as if it had been trained alone. Knows encoders and
distilled sets; no method.
"""
