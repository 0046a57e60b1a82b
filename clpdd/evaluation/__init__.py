"""The evaluation stage: every distilled set, with every encoder, under every protocol."""

from __future__ import annotations

from .stage import evaluate

__all__ = ["evaluate"]
