"""Distillation over ranks: the numbers of one process, whoever is killed, stopped, or goes on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clpdd.distilled.dataset import DistilledSet
from clpdd.distributed.group import Ranks
from clpdd.errors import Preempted, ResourceError, SettingsError
from clpdd.optimise.context import Watch
from clpdd.optimise.sharding import own_rows
from clpdd.storage.files import read_json, sha256_tree

from .conftest import World
from .ranks import PATIENCE, Launcher
from .spreading import LOSSES, losses, run, searched, stop_this_process


@dataclass
class Story:
    """What two pairs of ranks did in ``root``.

    Attributes:
        killed: exit code and last words of the rank that saw the other die.
        said: what each rank was told when the second was asked to stop, and when it came with other settings.
        log: what the ranks noted as they went on.
    """

    root: Path
    killed: tuple[int, str]
    said: list[list[str]]
    log: list[str]

    def set(self, name: str, method: str = "clp") -> DistilledSet:
        return DistilledSet.load(self.root / name / method)


def _own(lines: Iterable[str]) -> Iterator[str]:
    """All but those of releases of Gloo that print to standard output that they are connected."""
    return (line for line in lines if not line.startswith("[Gloo]"))


@pytest.fixture(scope="module")
def story(world: World, tmp_path_factory: pytest.TempPathFactory) -> Story:
    root, launcher = tmp_path_factory.mktemp("spread"), Launcher()
    places = [str(world.layout.root), str(root)]
    try:
        first, second = launcher.ranks(*[["-m", "tests.spreading", "before_the_kill", *places]] * 2)
        assert second.stdout is not None
        said = next(_own(second.stdout), "")
        assert said == "held\n", second.communicate()
        second.kill()
        said = first.communicate(timeout=PATIENCE)[1]
        with pytest.raises(Preempted, match="SIGUSR1 after step 3 of 8"):
            run(world, root / "begun", watch=Watch(on_progress=lambda *_: stop_this_process()))
        pair = launcher.ranks(*[["-m", "tests.spreading", "after_the_kill", *places]] * 2)
        ends = [rank.communicate(timeout=PATIENCE) for rank in pair]
        assert [rank.returncode for rank in pair] == [0, 0], ends
    finally:
        launcher.end()
    return Story(
        root, (first.returncode, said), [list(_own(out.splitlines())) for out, _ in ends], [err for _, err in ends]
    )


@pytest.fixture(scope="module")
def alone(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    return losses(world, tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("name", LOSSES)
def test_loss_gradient_and_score_are_those_of_one_process(
    story: Story, alone: dict[str, dict[str, torch.Tensor]], name: str
) -> None:
    expected = alone[name]
    found = {what: load_file(story.root / "losses.safetensors")[f"{name}/{what}"] for what in expected}
    scale = expected["gradient"].abs().max().item()
    assert scale > 0
    torch.testing.assert_close(found.pop("gradient"), expected["gradient"], rtol=1e-3, atol=1e-4 * scale)
    for what, value in found.items():
        torch.testing.assert_close(value, expected[what], rtol=1e-4, atol=1e-6, msg=what)


def test_a_killed_rank_is_noticed_and_the_run_goes_on_to_the_bytes_of_an_untouched_one(story: Story) -> None:
    code, said = story.killed
    assert code == ResourceError.exit_code, said
    assert "lost another rank, which was killed or failed" in said
    assert sha256_tree(story.root / "killed" / "clp") == sha256_tree(story.root / "whole" / "clp")
    assert [log.count("continuing at step 4 of 8") for log in story.log] == [1, 0]


def test_ranks_stop_together_and_one_process_goes_on(world: World, story: Story) -> None:
    assert {said[0] for said in story.said} == {"stopped by SIGUSR1 after step 3 of 8; saved: the same command goes on"}
    assert_same(run(world, story.root / "stopped"), story.set("whole"))


def test_two_ranks_go_on_where_one_process_was_stopped(story: Story) -> None:
    assert [log.count("continuing at step 3 of 8") for log in story.log] == [1, 0]
    assert_same(story.set("begun"), story.set("whole"))


def test_one_process_makes_what_two_make(world: World, story: Story, tmp_path: Path) -> None:
    assert_same(run(world, tmp_path), story.set("whole"))
    neighbours, two = run(world, tmp_path, method="neighbor"), story.set("whole", "neighbor")  # left to the first rank
    assert neighbours.info["sources"] == two.info["sources"]


def test_ranks_search_for_settings_as_one_process_does(world: World, story: Story, tmp_path: Path) -> None:
    two, one = read_json(story.root / "searched.json"), searched(world, tmp_path)
    assert [(trial["temperature"], trial["ridge"]) for trial in two] == [(t["temperature"], t["ridge"]) for t in one]
    for ours, theirs in zip(two, one, strict=True):
        assert abs(ours["validation_top1"] - theirs["validation_top1"]) <= 100 / 60 + 1e-3  # one of sixty images


def test_ranks_with_other_settings_are_refused(story: Story) -> None:
    for _, refused in story.said:
        assert refused.startswith("settings, code or data of ranks [1] differ from those of rank 0: start all")


def assert_same(one: DistilledSet, other: DistilledSet) -> None:
    """Equal but for rounding, which may move a pixel by a level."""
    curves, others = one.info["curves"], other.info["curves"]
    torch.testing.assert_close(torch.tensor(curves["loss"]), torch.tensor(others["loss"]), rtol=1e-4, atol=0)
    scores, other_scores = torch.tensor(curves["validation_top1"]), torch.tensor(others["validation_top1"])
    torch.testing.assert_close(scores, other_scores, rtol=0, atol=100 / 60 + 1e-3)  # one of sixty images
    for mine, its in ((one.images, other.images), (one.start, other.start)):
        assert mine is not None
        assert its is not None
        assert (mine.float() - its.float()).abs().mean() < 0.05
    assert one.soft_labels is not None
    torch.testing.assert_close(one.soft_labels, other.soft_labels, rtol=0, atol=1e-4)
    assert torch.equal(one.labels, other.labels)
    assert len(one.frames) == len(other.frames)
    assert one.info["kept_step"] == other.info["kept_step"]


def test_more_ranks_than_images_are_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"12 ranks share 11 synthetic.*start at most 11"):
        run(world, tmp_path, Ranks(0, 12))


@pytest.mark.parametrize(("total", "height", "chunked"), [(40, 8, True), (41, 8, True), (31, 8, False), (3, 8, False)])
def test_ranks_score_parts_of_a_store_in_whole_chunks_where_they_can(total: int, height: int, chunked: bool) -> None:
    store = Rows(total, height)
    parts = [own_rows(store, Ranks(rank, 4)) for rank in range(4)]
    assert [row for part in parts for row in part] == list(range(total))
    assert all(part.start % height == 0 for part in parts) == chunked


class Rows:
    """A store as far as its rows are concerned."""

    def __init__(self, total: int, chunk_rows: int) -> None:
        self.chunk_rows, self.dim = chunk_rows, 1
        self.labels = torch.zeros(total, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def stored(self, start: int, stop: int) -> object:
        raise AssertionError("nothing is read")
