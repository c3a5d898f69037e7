"""What `auto` chooses between, before anything is trained."""

import dataclasses
import itertools
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

import tfopt
from tests.conftest import residual_model, small_model
from tfopt import tune
from tfopt.analyze.allocate import allocate_zeros
from tfopt.tune.auto import _by_shape, _mildest
from tfopt.tune.bits import fewer_bits
from tfopt.tune.options import Option, Options, find_options, require_conceivable
from tfopt.tune.reference import measure_reference
from tfopt.tune.widths import cheapest, latency_table, narrowed, present, strain, widths_by_latency


def option(width=1.0, zeros=0.0, bits=(), size=100.0):
    channels = {"conv": int(100 * width)} if width < 1 else {}
    return Option((), channels, zeros, dict.fromkeys(bits, 4), True, 1 - width, width, size, size, None)


def test_a_limit_below_the_smallest_option_names_it():
    options = Options((option(size=100.0), option(0.5, size=60.0)), None, ())
    require_conceivable(tune.Goal(max_bytes=60), options)
    with pytest.raises(ValueError, match=r"max_gzip_bytes=59 cannot be reached: .* about 60 gzip bytes"):
        require_conceivable(tune.Goal(max_gzip_bytes=59), options)


@hypothesis.given(
    st.lists(
        st.builds(option, st.sampled_from([1.0, 0.7, 0.5]), st.sampled_from([0.0, 0.5]), st.sampled_from([(), ("a",)])),
        max_size=8,
        unique_by=str,
    )
)
def test_the_mildest_are_those_that_no_other_is_milder_than(options):
    found = _mildest(options)

    def is_milder(one, other):
        pairs = [(one.strain, other.strain), (one.zeros, other.zeros), (len(one.bits), len(other.bits))]
        return one is not other and all(a <= b for a, b in pairs)

    assert set(map(str, found)) == {str(e) for e in options if not any(is_milder(other, e) for other in options)}
    assert [each.width for each in found] == sorted((each.width for each in found), reverse=True)


def shape(blocks, strain, zeros=0.0):
    return Option(blocks, {}, zeros, {}, False, strain, 1.0, 10.0, 10.0, None)


def test_each_choice_of_blocks_has_its_own_mildest_option_at_the_front():
    channels, zeros = shape((), 0.2), shape((), 0.1, 0.5)
    block, worse = shape(("sum",), 0.6), shape(("sum",), 0.7)
    found = _by_shape([worse, channels, block, zeros])
    # What a block costs before training says little beside the others: it is no reason to leave it out.
    assert found == [zeros, block, channels]
    assert _by_shape([]) == []


def test_what_is_gone_has_no_sensitivity():
    model = residual_model()
    found = tfopt.Sensitivity("sparsity", "accuracy", 0.9, {name: {0.5: 0.8} for name in ("conv", "branch", "out")})
    smaller = narrowed(model, {"conv": 4}, ["sum"])
    assert list(present(smaller, found).values) == ["conv", "out"]
    assert smaller.get_layer("conv").filters == 4
    assert widths_by_latency({"conv": [(8, 0.0, 0.0), (4, 0.2, 0.1)]}, latency=0.6)[:2] == [{}, {}]
    assert widths_by_latency({"conv": [(8, 0.0, 0.0), (4, 0.2, 0.1)]}, latency=0.6)[-1] == {"conv": 4}


@pytest.mark.parametrize(
    ("limits", "packed"),
    [
        ({"max_drop": 0.1}, False),
        ({"max_gzip_bytes": 4000, "max_latency_ms": 1.0}, False),
        ({"max_bytes": 4000}, True),
        ({"max_gzip_bytes": 4000}, True),
        ({"max_bytes": 4000, "max_latency_ms": 1.0}, None),
        ({"max_latency_ms": 1.0}, None),
    ],
)
def test_bits_are_packed_where_the_file_itself_counts_and_time_does_not(limits, packed, trained, data):
    found = fewer_bits(trained, data, tune.Goal(**limits), [])
    assert packed == (None if found is None else found.packed)
    if found is not None:
        assert found.layers
        assert set(found.layers.values()) <= ({4} if packed else {3, 4, 5, 6})


@pytest.mark.slow
def test_fewer_bits_cost_no_time_where_they_are_not_packed(trained, data, tmp_path):
    reference, known = measure_reference(trained, data, False, tmp_path)
    options = find_options(trained, known, tune.Goal(max_drop=0.1), reference, tmp_path).options
    whole, fewer = [each for each in options if not each.channels and not each.zeros]
    assert not whole.bits
    assert fewer.bits
    assert 0.9 * whole.bytes < fewer.bytes <= whole.bytes
    assert fewer.gzip_bytes < 0.9 * whole.gzip_bytes
    assert fewer.latency == whole.latency == 1.0


def test_zeros_go_where_they_cost_least_and_add_up():
    model = small_model()
    values = {name: {0.5: 0.9, 0.9: 0.9} for name in ("conv", "hidden", "out")}
    values["hidden"] = {0.5: 0.8, 0.9: 0.3}
    found = tfopt.Sensitivity("sparsity", "accuracy", 0.9, values)
    zeros = allocate_zeros(model, found, 0.5)
    sizes = {name: int(np.prod(model.get_layer(name).kernel.shape)) for name in values}
    assert sum(sizes[name] * zeros[name] for name in zeros) / sum(sizes.values()) == pytest.approx(0.5, abs=1e-3)
    assert zeros["conv"] == zeros["out"] > zeros["hidden"] > 0
    with pytest.raises(ValueError, match="a share of 0.95 is more than the highest levels that were measured, 0.900"):
        allocate_zeros(model, found, 0.95)
    with pytest.raises(ValueError, match='must be to "sparsity"'):
        allocate_zeros(model, dataclasses.replace(found, kind="ratio"), 0.5)
    assert allocate_zeros(model, found, 0.0) == {}


@hypothesis.given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), min_size=1, max_size=3), min_size=1, max_size=4
    ),
    st.integers(0, 120),
)
def test_the_cheapest_choice_is_that_of_brute_force(groups, least):
    choices = [[(0.0, 0.0), *((saved / 200, float(cost)) for saved, cost in rows)] for rows in groups]
    found = cheapest(choices, least / 200)
    fitting = [
        sum(cost for _, cost in picked)
        for picked in itertools.product(*choices)
        if round(200 * sum(saved for saved, _ in picked)) >= least
    ]
    if not fitting:
        assert found is None
        return
    picked = [rows[index] for rows, index in zip(choices, found, strict=True)]
    assert round(200 * sum(saved for saved, _ in picked)) >= least
    assert sum(cost for _, cost in picked) == min(fitting)


def test_channels_that_save_no_time_stay():
    model = small_model()
    values = {name: {0.5: 0.85, 0.9: 0.6} for name in ("conv", "hidden")}
    found = tfopt.Sensitivity("ratio", "accuracy", 0.9, values)

    def time(channels):
        # Only the convolution counts.
        return 0.2 + 0.1 * channels.get("conv", 8)

    table = latency_table(model, found, time)
    widths = widths_by_latency(table)
    assert widths[0] == {"conv": 4}
    assert widths[-1] == {"conv": 4}
    assert strain(model, found, {"conv": 4, "hidden": 6}) == pytest.approx(math.sqrt(2) * 0.05)
    assert narrowed(model, {"conv": 4}).get_layer("conv").filters == 4


@pytest.mark.parametrize(("multiple", "filters"), [(8, 8), (4, 4), (1, 3)])
def test_the_stage_rounds_what_is_kept_to_its_multiple(multiple, filters, trained, data):
    ratios = {"conv": 0.7, "hidden": 0.7}
    stage = tfopt.PruneChannels(layers=ratios, epochs=1, multiple=multiple)
    expected = stage.validate(tfopt.Work(trained, data)).need_model()
    assert expected.get_layer("conv").filters == filters
