"""What is read off the tables."""

from __future__ import annotations

import pytest

from clpdd.benchmark.readings import Curve, accuracy_at, duels, ends, mean_by_time, mean_curve, time_to

from .conftest import made_rows

PEER = [(0.0, 10.0), (2.0, 20.0), (4.0, 40.0), (20.0, 30.0)]


def test_accuracy_between_points_is_on_the_line_and_after_the_end_stays() -> None:
    assert [accuracy_at(PEER, x) for x in (0, 1, 2, 3, 12, 20, 1000)] == [10, 15, 20, 30, 35, 30, 30]
    with pytest.raises(ValueError, match="first point is at 2"):
        accuracy_at(PEER[1:], 1.0)


def test_time_to_an_accuracy_is_the_first_crossing() -> None:
    assert [time_to(PEER, y) for y in (5, 10, 15, 30, 40, 41)] == [0, 0, 1, 3, 4, None]


def test_curves_of_several_seeds_meet_at_all_their_points_up_to_the_first_end() -> None:
    met = mean_curve([[(0.0, 10.0), (4.0, 30.0)], [(0.0, 20.0), (2.0, 30.0), (8.0, 60.0)]])
    assert [(x, y.mean, y.runs) for x, y in met] == [(0, 15, 2), (2, 25, 2), (4, 35, 2)]
    assert met[0][1].std == pytest.approx(50**0.5)


def test_distillations_judged_after_the_same_steps_keep_their_accuracies_however_long_they_took() -> None:
    quick = Curve("clp", 0, [(0.0, 38.0), (40.0, 61.0)], [(0.0, 38.0), (600.0, 61.0)])
    slow = Curve("clp", 1, [(0.0, 38.0), (90.0, 60.0)], [(0.0, 38.0), (600.0, 60.0)])
    met = mean_by_time([quick, slow])
    assert [(x, y.mean, y.runs) for x, y in met] == [(0, 38, 2), (65, 60.5, 2)]
    other = Curve("lgm", 1, [(0.0, 38.0), (20.0, 50.0)], [(0.0, 38.0), (132.0, 50.0)])
    assert mean_by_time([quick, other]) == mean_curve([quick.by_time, other.by_time])


def test_a_duel_is_read_seed_by_seed() -> None:
    (duel,) = duels(made_rows())
    assert (duel.name, duel.reference) == ("lgm", "clp")
    assert (duel.reference_end.mean, duel.reference_seconds.mean) == (52, 5)
    assert (duel.equal.mean, duel.late.mean, duel.factor.mean) == (25, 50, 10)
    assert (duel.lead_equal.mean, duel.lead_late.mean) == (27, 2)
    assert duel.lead_late.std == pytest.approx(128**0.5)  # -6 and 10
    assert duel.reached is not None
    assert (duel.reached.mean, duel.reached.runs) == (34, 1)  # 4 + 36 * 30/36; the other seed never
    assert duel.caught is not None
    assert (duel.caught.mean, duel.caught.runs) == (3, 1)  # 44 on the way from 34 to 54 in 6 s


def test_the_end_tells_the_deviation_over_distillations_from_that_over_probes() -> None:
    rows = made_rows()
    last = ends(rows, lambda row: row["top1"])
    assert (last["clp"].mean, last["clp"].runs) == (52, 2)
    assert last["clp"].std == pytest.approx(8**0.5)  # 50 and 54
    assert last["clp"].probe_std == pytest.approx(0.5**0.5)  # half a point on either side of each
    assert (last["random"].mean, last["random"].runs) == (12.5, 2)
    alone = ends([r for r in rows if r["seed"] == 0 and r["draw"] == 0], lambda row: row["top1"])
    assert (alone["clp"].std, alone["clp"].runs) == (None, 1)
    assert alone["clp"].probe_std == pytest.approx(0.5**0.5)


def test_rows_of_several_protocols_are_no_further_runs() -> None:
    rows = [row | {"protocol": protocol} for row in made_rows() for protocol in ("sgd", "knn", "closed_form")]
    last = ends(rows, lambda row: row["peak_memory_mb"])
    assert {name: last[name].runs for name in last} == {"clp": 2, "lgm": 2, "random": 2}
    alone = ends([r for r in rows if (r["seed"], r["draw"]) == (0, 0)], lambda row: row["peak_memory_mb"])
    assert {name: alone[name].runs for name in alone} == {"clp": 1, "lgm": 1, "random": 1}
