"""Orchestration: Prefect conducts, DVC remembers. Knows both as commands, and nothing of tensors."""

from __future__ import annotations

from flows.environment import prepare

__all__: list[str] = []

prepare()  # before any module of this package imports Prefect, which reads its settings on import
