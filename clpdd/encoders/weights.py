"""Weights out of local safetensors files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import safetensors
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import ArtifactError, first_few
from .conversion import conversion_of
from .weight_names import PREFIXES, renamed, shared_prefixes

__all__ = ["fit", "load_weights", "read_weights"]

log = logging.getLogger(__name__)

_State = dict[str, Tensor]
_Head = Callable[[Mapping[str, Tensor]], Collection[str]]


def load_weights(model: nn.Module, path: str | Path, head: _Head | None = None) -> None:
    """Load a local safetensors file into ``model``: ``read_weights``, then ``fit``."""
    fit(model, read_weights(path), str(path), head)


def read_weights(path: str | Path) -> _State:
    """The tensors of a safetensors file.

    Raises ``ArtifactError`` when it is missing, cut off or not safetensors (a pickle is refused, never opened).
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ArtifactError(f"weights file {path} does not exist: check encoder_options")
    try:
        return load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        if _is_cut(path):
            raise ArtifactError(f"{path} is cut off or damaged ({error}): fetch or copy it again") from error
        raise ArtifactError(
            f"{path} is not a safetensors file ({error}). Pickled checkpoints (.pt, .pth, .bin) are refused, because "
            f"loading one can run code: convert it with safetensors.torch.save_file first"
        ) from error


def _is_cut(path: Path) -> bool:
    """Whether a file that cannot be read begins as safetensors do: the length of a header, and its first brace."""
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{"


def fit(model: nn.Module, state: _State, source: str, head: _Head | None = None) -> None:
    """Load weights into ``model``, every one of them into its place.

    Tried in turn, each as it stands and through the model's own conversion (as timm loads checkpoints of other image
    sizes or codebases): the names as they are; without the prefixes of training that all of them share; by those of
    ``transformers``. What was needed is said in a line.

    Args:
        source: where the weights are from, for messages.
        head: of the model's names, those that it has with a classifier and lacks without: only such ones are left out.

    Raises ``ArtifactError`` when they do not fit, naming the first that differ and, where stripping more would help,
    how to do it.
    """
    target = _Target(model, head)
    found = target.reading(state)
    if isinstance(found, _Misfit):
        raise ArtifactError(f"{source} does not fit the model{found}{_advice(target, state, found, source)}")
    names, whole = found
    if names:
        log.info("%s: its weights are taken %s", source, names)
    model.load_state_dict({name: whole[name] for name in target.own})


@dataclass(frozen=True)
class _Misfit:
    """Why weights do not fit.

    Attributes:
        text: in words, to stand after "does not fit the model".
        only_unexpected: the names that are too many, where nothing else is wrong.
    """

    text: str
    only_unexpected: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text


class _Target:
    """The weights that a model needs, and how given ones may be read to be these."""

    def __init__(self, model: nn.Module, head: _Head | None) -> None:
        self.own = model.state_dict()
        self._model, self._head = model, head

    @cached_property
    def droppable(self) -> frozenset[str]:
        """Names of the classifier, which the model lacks; looked up when first needed."""
        return frozenset() if self._head is None else frozenset(self._head(self.own))

    def reading(self, state: _State) -> tuple[str, _State] | _Misfit:
        """How the names had to be read, in words, and weights that fit; else what is wrong with them as they are."""
        reported: _Misfit | None = None
        for names, form in _readings(state):
            for candidate in (form, self._converted(form)):
                trouble = candidate if isinstance(candidate, _Misfit) else self._trouble(candidate)
                if not isinstance(candidate, _Misfit) and trouble is None:
                    return names, candidate
            reported = reported or trouble
        assert reported is not None
        return reported

    def _trouble(self, state: _State) -> _Misfit | None:
        own = self.own
        unexpected = sorted(state.keys() - own.keys())
        if unexpected:
            unexpected = [name for name in unexpected if name not in self.droppable]
        missing = sorted(own.keys() - state.keys())
        wrong = [
            f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
            for k in sorted(own.keys() & state.keys())
            if own[k].shape != state[k].shape
        ]
        if not (missing or unexpected or wrong):
            return None
        return _Misfit(
            f": {_count('missing', missing)}, {_count('unexpected', unexpected)}, "
            f"{_count('of another shape', wrong)}. Is it the right architecture?",
            () if missing or wrong else tuple(unexpected),
        )

    def _converted(self, state: _State) -> _State | _Misfit:
        """``state`` through the model's own conversion, as timm loads it: position embeddings of other image sizes."""
        convert = conversion_of(self._model)
        if convert is None:
            return state
        try:
            return dict(convert(dict(state), self._model))
        except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            return _Misfit(f" ({type(error).__name__}: {error}). Is it the right architecture?")


def _readings(state: _State) -> Iterator[tuple[str, _State]]:
    """How the names may be meant, in words, and the weights so read."""
    yield "", state
    stripped, removed = state, ""
    while stripped:
        prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in stripped)), None)
        if prefix is None:
            break
        removed += prefix
        stripped = {name.removeprefix(prefix): value for name, value in stripped.items()}
        yield f"without the prefix {removed!r} of its names", stripped
    for names, form in ((f" without the prefix {removed!r}", stripped), ("", state)):
        theirs = renamed(form)
        if theirs is not None:
            yield f"by the names of transformers{names if removed else ''}", theirs
        if not removed:
            break


def _advice(target: _Target, state: _State, misfit: _Misfit, source: str) -> str:
    """How to bring weights of which a part would fit."""
    for prefix in _prefixes(state):
        form = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if not isinstance(target.reading(form), _Misfit):
            keep = f"{{k[{len(prefix)}:]: v for k, v in s.items() if k.startswith('{prefix}')}}"
            return (
                f" Those of its names that begin with {prefix!r} would fit: save them alone, by\n{_save(source, keep)}"
            )
    parts = sorted({name.split(".")[0] for name in misfit.only_unexpected})
    if parts and not {name.split(".")[0] for name in target.own} & set(parts):
        keep = f"{{k: v for k, v in s.items() if k.split('.')[0] not in {parts}}}"
        return (
            f" All that is too much lies under {', '.join(parts)}, which the model has not: if that is a head of "
            f"another training, leave it out, by\n{_save(source, keep)}"
        )
    return ""


def _save(source: str, keep: str) -> str:
    return (
        f'python -c "from safetensors.torch import load_file, save_file; s = load_file({source!r}); '
        f"save_file({keep}, 'stripped.safetensors')\""
    )


def _prefixes(state: _State) -> list[str]:
    """Candidates: what any name begins with, up to a dot, those with the most names first, ten at most."""
    counts: dict[str, int] = {}
    for name in state:
        for prefix in shared_prefixes({name: None}):
            counts[prefix] = counts.get(prefix, 0) + 1
    return sorted(counts, key=lambda prefix: ("student" in prefix, -counts[prefix], len(prefix)))[:10]


def _count(what: str, keys: list[str]) -> str:
    return f"{len(keys)} {what}" + (f" ({first_few(keys)})" if keys else "")
