"""Where a model is cut: plain numbers."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfopt.train.partition import allowed_cuts, balanced_cuts, crossings


def sums(costs, cuts):
    return [sum(costs[start:stop]) for start, stop in itertools.pairwise([0, *cuts, len(costs)])]


@given(st.data())
def test_cuts_are_as_good_as_the_best_of_all(data):
    costs = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=9))
    allowed = sorted(data.draw(st.sets(st.integers(1, len(costs) - 1)))) if len(costs) > 1 else []
    parts = data.draw(st.integers(1, len(allowed) + 1))
    cuts = balanced_cuts(costs, parts, allowed)
    assert len(cuts) == parts - 1
    assert cuts == sorted(set(cuts))
    assert set(cuts) <= set(allowed)
    best = min(max(sums(costs, each)) for each in itertools.combinations(allowed, parts - 1))
    assert max(sums(costs, cuts)) == best


def test_what_costs_nothing_stays_with_what_is_before_it():
    assert balanced_cuts([4, 0, 0, 4, 0], 2, range(1, 5)) == [3]
    assert balanced_cuts([1, 1, 1, 1, 1, 1], 3, range(1, 6)) == [2, 4]
    assert balanced_cuts([7], 1, []) == []


def test_too_few_cuts_are_refused():
    with pytest.raises(ValueError, match="3 parts need 2 cuts, and 1 are possible"):
        balanced_cuts([1, 1, 1], 3, [1])


@given(st.integers(1, 12), st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)).map(sorted)))
def test_no_cut_is_inside_what_stays_whole(size, whole):
    allowed = allowed_cuts(size, whole)
    for cut in range(1, size):
        assert (cut in allowed) == all(not first < cut <= last for first, last in whole)


@given(st.data())
def test_running_the_parts_one_by_one_needs_nothing_that_did_not_cross(data):
    count = data.draw(st.integers(1, 8))
    operations = []
    for index in range(count):
        reads = data.draw(st.lists(st.integers(-1, index - 1), min_size=1, max_size=3))
        operations.append((tuple(reads), (index,)))
    wanted = data.draw(st.sets(st.integers(-1, count - 1), min_size=1))
    cuts = sorted(data.draw(st.sets(st.integers(1, count - 1)))) if count > 1 else []
    carried = {-1}
    for (start, stop), (receives, sends) in zip(
        itertools.pairwise([0, *cuts, count]), crossings(operations, cuts, wanted), strict=True
    ):
        assert set(receives) <= carried
        known = set(receives)
        for reads, writes in operations[start:stop]:
            assert set(reads) <= known
            known |= set(writes)
        assert set(sends) <= known - set(receives)
        carried |= set(sends)
        # And nothing crosses that nobody needs.
        later = {key for reads, _ in operations[stop:] for key in reads}
        assert set(sends) <= later | wanted
        assert set(receives) <= {key for reads, _ in operations[start:stop] for key in reads}
    assert wanted <= carried
