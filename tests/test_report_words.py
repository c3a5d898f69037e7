"""The report's sentences and numbers."""

import pytest

from tests.report_samples import digits, large, one_row
from tfopt.report import units, words


def _timed(median, p90=None, **others):
    return {"variant": "v", "median_ms": median, "p90_ms": p90, **others}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (_timed(1.0), _timed(0.949), "faster"),
        (_timed(1.0), _timed(0.951), "unchanged"),
        (_timed(1.0), _timed(1.049), "unchanged"),
        (_timed(1.0), _timed(1.051), "slower"),
        (_timed(1.0, 1.3), _timed(0.75, 0.8), "unchanged"),
        (_timed(1.0, 1.05), _timed(0.75, 1.1), "unchanged"),
        (_timed(1.0, 1.2), _timed(0.75, 0.8), "faster"),
        (_timed(None), _timed(1.0), ""),
        ({"variant": "v"}, _timed(1.0), ""),
    ],
)
def test_a_latency_change_counts_beyond_five_percent_and_the_spread(before, after, expected):
    assert words.latency_change(before, after) == expected


def test_steps_of_the_digits_chain():
    assert words.steps(digits().chain) == [
        "Prune (float32): 80 % of the weights are zero; the file did not get smaller (48,912 bytes), gzipped "
        "it shrank from 44,100 to 13,900 bytes (x0.32). Accuracy 98.33 % to 98.06 % (-0.27 points). Latency "
        "is unchanged (0.0215 ms, x1.01): no speed-up, LiteRT on this CPU does not skip zero weights.",
        "ExportTFLite (int8): the file shrank from 48,912 to 15,208 bytes (x0.31), gzipped it shrank from "
        "13,900 to 5,120 bytes (x0.37). Accuracy is unchanged (98.06 %). Latency "
        "0.0215 to 0.0109 ms (x0.51): faster.",
    ]


@pytest.mark.parametrize(
    ("before", "after", "part"),
    [
        ({"bytes": 100}, {"bytes": 198}, "the file grew from 100 to 198 bytes (x1.98)"),
        ({"gzip_bytes": 1000}, {"gzip_bytes": 995}, "gzipped it did not get smaller (995 bytes)"),
        ({}, {"bytes": 1}, "size was not measured"),
        (_timed(1.0), _timed(33.0), "Latency 1.00 to 33.0 ms (x33.0): no speed-up but slower."),
        (
            _timed(1.0, 1.5),
            _timed(0.9, 1.0, sparsity=0.8),
            "no speed-up, the difference is within the noise of 0.500 ms",
        ),
        (_timed(1.0), _timed(0.5, sparsity=0.8), "Latency 1.00 to 0.500 ms (x0.50): faster."),
        (_timed(1.0, sparsity=0.8), _timed(1.0, sparsity=0.8), "no speed-up, the difference is within 5 %."),
        ({"accuracy": 0.9}, {"accuracy": None}, "Accuracy was not measured."),
        ({"accuracy": None}, {"accuracy": 0.9}, "Accuracy is 90.00 %."),
    ],
)
def test_what_a_step_brought_is_told_as_it_is(before, after, part):
    assert part in words.step({"variant": "a", **before}, {"variant": "b", **after})


def test_zeros_that_were_there_before_are_not_told_again():
    assert "weights are zero" not in words.steps(digits().chain)[1]


def test_summary_of_one_row_compares_nothing():
    assert words.summary(one_row().chain) == (
        "One variant was measured, Train (float32): accuracy 98.33 %, 48,912 bytes, 44,100 bytes gzipped, "
        "latency 0.0213 ms. Nothing to compare it with."
    )
    assert words.steps(one_row().chain) == []
    assert "accuracy not measured, size not measured, latency not measured" in words.summary([{"variant": "a"}])


def test_a_broken_promise_is_named():
    assert words.promises(large().stages) == "1 of 1 invariant checks failed: Sparsity(0.75) after Prune."
    assert words.promises(digits().stages) == "All 2 invariant checks hold."


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("Prune(final_sparsity=0.8)", 0.8),
        ("Prune(ConstantSparsity(target_sparsity=0.5))", 0.5),
        ("Train(epochs=3)", None),
        ("Prune(schedule=<object at 0x7f>)", None),
        ("Prune(final_sparsity=None)", None),
    ],
)
def test_target_sparsity_is_read_from_the_repr(expression, expected):
    assert words.target_sparsity(expression) == expected


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (units.percent(0.99999), "100.00 %"),
        (units.points(0.5, 0.499999), "+0.00 points"),
        (units.milliseconds(99.96), "100"),
        (units.milliseconds(9.999), "10.0"),
        (units.seconds(59.96), "1 min 0 s"),
        (units.ratio(0, 5), ""),
        (units.ratio(100, 6.25), "x0.062"),
        (units.value("threads", 2), "2"),
        (units.value("accuracy", 1), "100.00 %"),
        (units.value("learning_rate", 0.001), "0.001"),
        (units.value("flag", False), "no"),
        (units.value("ops", {"ADD": 2, "MUL": None}), "ADD: 2, MUL: \N{EM DASH}"),
    ],
)
def test_numbers_are_written_for_readers(written, expected):
    assert written == expected
