"""Metrics with bootstrap intervals, of arrays."""

import json

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from tfopt.measure import regression, score
from tfopt.measure.bootstrap import bootstrap
from tfopt.measure.classes import Decided
from tfopt.measure.observations import observe

RNG = np.random.default_rng
QUICK = {"resamples": 20}


def value_of(found) -> dict:
    return {name: each.value for name, each in found.values.items()}


def ends_of(found) -> dict:
    return {name: (each.low, each.high) for name, each in found.values.items()}


def classified(size=300, count=4, seed=0, spread=1.0):
    """Labels and logits that mostly agree."""
    rng = RNG(seed)
    labels = rng.integers(0, count, size)
    logits = rng.normal(0, spread, (size, count))
    logits[np.arange(size), labels] += 1.5
    return labels, logits


def expected_classes(labels, logits, weights=None):
    decided, shares = logits.argmax(-1), scipy.special.softmax(logits, -1)
    options = {"sample_weight": weights, "average": "macro"}
    return {
        "accuracy": sklearn.metrics.accuracy_score(labels, decided, sample_weight=weights),
        "precision": sklearn.metrics.precision_score(labels, decided, **options),
        "recall": sklearn.metrics.recall_score(labels, decided, **options),
        "f1": sklearn.metrics.f1_score(labels, decided, **options),
        "auc": sklearn.metrics.roc_auc_score(labels, shares, multi_class="ovr", **options),
    }


def test_a_binary_task_by_hand():
    targets = [1, 1, 1, 0, 0, 0, 0, 0]
    outputs = [0.9, 0.8, 0.3, 0.7, 0.1, 0.2, 0.3, 0.0]
    found = score("binary", targets, outputs, class_names=("no", "yes"), **QUICK)
    assert found.confusion == [[4, 1], [1, 2]]
    # Of 15 pairs of a yes and a no: 0.9 and 0.8 beat all five, 0.3 beats three and ties with one.
    expected = {"accuracy": 6 / 8, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "auc": 13.5 / 15}
    assert value_of(found) == pytest.approx(expected)
    assert [(row.name, row.support) for row in found.classes] == [("no", 5), ("yes", 3)]
    assert found.classes[0].precision == pytest.approx(4 / 5)
    assert found.classes[0].f1 == pytest.approx(4 / 5)
    assert found.notes == ["Precision, recall and F1 are those of class yes."]


def test_logits_of_one_unit_decide_at_zero():
    found = score("binary", [[1], [0]], [[0.2], [-0.2]], threshold=0.0, **QUICK)
    assert found.values["accuracy"].value == 1.0


@pytest.mark.parametrize("is_weighted", [False, True])
def test_classes_agree_with_scikit_learn(is_weighted):
    labels, logits = classified()
    weights = RNG(1).uniform(0.5, 3, len(labels)) if is_weighted else None
    found = score("multi-class", labels, logits, weights, **QUICK)
    assert value_of(found) == pytest.approx(expected_classes(labels, logits, weights))
    matrix = sklearn.metrics.confusion_matrix(labels, logits.argmax(-1), sample_weight=weights)
    np.testing.assert_allclose(found.confusion, matrix)
    report = sklearn.metrics.classification_report(labels, logits.argmax(-1), sample_weight=weights, output_dict=True)
    for row in found.classes:
        assert (row.precision, row.recall, row.f1, row.support) == pytest.approx(
            tuple(report[row.name][key] for key in ("precision", "recall", "f1-score", "support"))
        )


@pytest.mark.parametrize("is_weighted", [False, True])
def test_numbers_agree_with_scikit_learn(is_weighted):
    rng = RNG(0)
    targets = rng.normal(50, 10, (60, 2))
    outputs = targets + rng.normal(1, 4, targets.shape)
    weights = rng.uniform(0.5, 3, 60) if is_weighted else None
    found = score("regression", targets, outputs, weights, **QUICK)
    each = None if weights is None else np.repeat(weights, 2)
    pair = targets.ravel(), outputs.ravel()
    assert value_of(found) == pytest.approx(
        {
            "mae": sklearn.metrics.mean_absolute_error(*pair, sample_weight=each),
            "rmse": sklearn.metrics.root_mean_squared_error(*pair, sample_weight=each),
            "mape": sklearn.metrics.mean_absolute_percentage_error(*pair, sample_weight=each),
            "pearson": found.values["pearson"].value,
        }
    )
    correlation = np.cov(*pair, aweights=each)
    expected = correlation[0, 1] / np.sqrt(correlation[0, 0] * correlation[1, 1])
    assert found.values["pearson"].value == pytest.approx(expected)
    if not is_weighted:
        assert expected == pytest.approx(scipy.stats.pearsonr(*pair).statistic)
    assert (found.examples, found.labels, found.classes, found.confusion) == (60, 120, [], [])


@pytest.mark.parametrize("task", ["binary", "multi-class", "regression"])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_resample_gives_what_its_examples_give(task, steps):
    """Sums over the examples are exact: the metrics of each resample are those of its examples, written out."""
    rng, size, several = RNG(2), 40, task == "multi-class"
    labels = rng.integers(0, 3 if several else 2, (size, steps))
    # Rounded, so that many scores are equal.
    outputs = rng.normal(0, 1, (size, steps, *[3] * several)).round(1)
    if task == "regression":
        labels = labels + rng.uniform(1, 2, labels.shape)
    weights = rng.integers(1, 4, (size, steps)).astype(float)
    seen = observe(task, labels, outputs, weights)
    statistic = regression.statistic(seen) if task == "regression" else Decided(seen, not several, 0.5, ()).statistic()
    counts = rng.multinomial(size, np.full(size, 1 / size), 5).T
    resampled = statistic(counts.astype(float))
    for column in range(5):
        drawn = np.repeat(np.arange(size), counts[:, column])
        written_out = score(task, labels[drawn], outputs[drawn], weights[drawn], resamples=1)
        assert {name: each[column] for name, each in resampled.items()} == pytest.approx(value_of(written_out))


def test_resamples_are_drawn_with_replacement_and_each_example_as_often():
    found = bootstrap(lambda counts: {"size": counts.sum(axis=0), "first": counts[0], "last": counts[-1]}, 50, 4000)
    assert set(found["size"]) == {50}
    # The number of times that one of 50 is drawn is binomial, with mean 1 and variance 0.98.
    for name in ("first", "last"):
        assert found[name].mean() == pytest.approx(1, abs=4 * np.sqrt(0.98 / 4000))
        assert found[name].var() == pytest.approx(0.98, rel=0.15)


# The number of intervals that hold the truth is binomial: one of 2,000 sound ones falls below the first, one above the
# second.
SETS, LEVEL = 200, 0.9
LIMITS = scipy.stats.binom.ppf([0.0005, 0.9995], SETS, LEVEL)


def covered(truth, draw):
    """How often the interval of each metric holds the true value."""
    found = [ends_of(score(*draw(RNG(number)), level=LEVEL, resamples=300, seed=number)) for number in range(SETS)]
    return {name: sum(ends[name][0] <= true <= ends[name][1] for ends in found) for name, true in truth.items()}


def test_intervals_of_a_binary_task_cover_the_truth():
    # Scores of the classes are normal, one apart by 1.5: decided at 0.75 both are right with the same probability.
    right = scipy.stats.norm.cdf(0.75)

    def draw(rng):
        targets = rng.integers(0, 2, 250)
        return "binary", targets, rng.normal(1.5 * targets - 0.25, 1.0)

    truth = {name: right for name in ("accuracy", "precision", "recall", "f1")}
    truth["auc"] = scipy.stats.norm.cdf(1.5 / np.sqrt(2))
    for name, hits in covered(truth, draw).items():
        assert LIMITS[0] <= hits <= LIMITS[1], name


def test_intervals_of_numbers_cover_the_truth():
    def draw(rng):
        targets = rng.normal(0, 1, 250)
        return "regression", targets, targets + rng.normal(0, 0.75, 250)

    truth = {"mae": 0.75 * np.sqrt(2 / np.pi), "rmse": 0.75, "pearson": 1 / np.sqrt(1 + 0.75**2)}
    for name, hits in covered(truth, draw).items():
        assert LIMITS[0] <= hits <= LIMITS[1], name


def test_steps_of_one_example_are_no_further_evidence():
    labels, logits = classified(100)
    once = score("multi-class", labels, logits, resamples=200)
    often = score("multi-class", np.repeat(labels[:, None], 8, 1), np.repeat(logits[:, None], 8, 1), resamples=200)
    assert ends_of(often)["accuracy"] == pytest.approx(ends_of(once)["accuracy"])
    assert (often.examples, often.labels) == (100, 800)
    assert "800 labels of 100 examples, which are resampled whole." in often.notes


def test_same_seed_same_intervals():
    labels, logits = classified()
    first, again, other = (score("multi-class", labels, logits, resamples=50, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert ends_of(first) != ends_of(other)
    assert value_of(first) == value_of(other)


def test_a_higher_level_gives_wider_intervals():
    labels, logits = classified()
    narrow, wide = (score("multi-class", labels, logits, level=level, resamples=200) for level in (0.5, 0.99))
    for name in value_of(narrow):
        assert wide.values[name].low < narrow.values[name].low <= narrow.values[name].high < wide.values[name].high


@pytest.mark.parametrize("task", ["multi-class", "regression"])
def test_weight_zero_is_as_if_it_were_not_there(task):
    labels, logits = classified(50)
    outputs = logits if task == "multi-class" else logits[:, 0]
    weights = np.arange(50) % 3 > 0
    found = score(task, labels + (task == "regression"), outputs, weights, resamples=30)
    kept = score(task, labels[weights] + (task == "regression"), outputs[weights], resamples=30)
    assert found.values == kept.values
    assert (found.examples, found.confusion) == (33, kept.confusion)
    assert "17 labels have the weight 0 and are left out." in found.notes


def test_one_hot_targets_and_probabilities_are_as_labels_and_logits():
    labels, logits = classified(80)
    plain = score("multi-class", labels, logits, **QUICK)
    shares = scipy.special.softmax(logits, -1)
    assert score("multi-class", np.eye(4)[labels], shares, **QUICK) == plain


def test_a_class_without_labels_is_said():
    labels, logits = classified(60)
    labels[labels == 2] = 1
    logits[:, 3] = -9.0
    found = score("multi-class", labels, logits, **QUICK)
    absent, unchosen = found.classes[2], found.classes[3]
    assert (absent.support, absent.precision, absent.recall, absent.f1) == (0, 0.0, None, None)
    assert absent.reason == "no labels of this class"
    assert (unchosen.precision, unchosen.recall, unchosen.f1, unchosen.reason) == (None, 0.0, 0.0, "never decided for")
    assert "1 class has no labels and is left out of the means." in found.notes
    assert "1 class has labels and is never decided for: precision counts as 0." in found.notes
    expected = sklearn.metrics.precision_recall_fscore_support(
        labels, logits.argmax(-1), labels=[0, 1, 3], average="macro", zero_division=0.0
    )
    values = value_of(found)
    assert (values["precision"], values["recall"], values["f1"]) == pytest.approx(expected[:3])
    assert None not in ends_of(found)["recall"]
    json.dumps(found.to_report(), allow_nan=False)


@pytest.mark.parametrize(
    ("task", "targets", "outputs", "name", "reason"),
    [
        ("binary", [0, 0], [0.1, 0.9], "recall", "no label is of class 1"),
        ("binary", [0, 1], [0.1, 0.2], "precision", "no decision is for class 1"),
        ("binary", [1, 1], [0.1, 0.2], "auc", "all labels are of class 1: it needs others"),
        ("multi-class", [2, 2], np.eye(3)[:2], "auc", "all labels are of class 2: it needs others"),
        ("regression", [0.0, 2.0], [1.0, 2.0], "mape", "1 of 2 targets are 0, and a share of 0 is not defined"),
        ("regression", [2.0, 2.0], [1.0, 2.0], "pearson", "the targets are all the same number"),
        ("regression", [1.0, 2.0], [0.1, 0.1], "pearson", "the outputs are all the same number"),
    ],
)
def test_what_is_not_defined_has_no_value_but_a_reason(task, targets, outputs, name, reason):
    found = score(task, targets, outputs, **QUICK)
    assert found.values[name].to_dict() == {"value": None, "low": None, "high": None, "reason": reason}
    assert "NaN" not in json.dumps(found.to_report(), allow_nan=False)


def test_what_an_interval_cannot_tell_is_said():
    perfect = score("binary", [0, 1] * 20, [0.1, 0.9] * 20, **QUICK).values["accuracy"]
    assert (perfect.low, perfect.high) == (1.0, 1.0)
    assert perfect.reason == "all resamples give the same value: too few differ to tell how far it may be off"
    rare = score("binary", [1] + [0] * 9, [0.9] + [0.1] * 9, resamples=400).values["recall"]
    missing = int(rare.reason.split()[2])
    # Of ten examples the one is missed with probability 0.9 ** 10 = 0.35.
    assert 110 <= missing <= 170
    assert rare.reason.startswith(f"undefined in {missing} of 400 resamples, which are left out")
    assert score("regression", [1.0], [2.0], **QUICK).values["mae"].to_dict() == {
        "value": 1.0,
        "low": None,
        "high": None,
        "reason": "one example has no spread",
    }


def test_very_many_classes_leave_the_confusion_out_of_the_report():
    labels = np.arange(101)
    found = score("multi-class", labels, np.eye(101), **QUICK)
    assert len(found.confusion) == 101
    report = found.to_report()
    assert report["confusion"] == []
    assert len(report["classes"]) == 101
    assert report["notes"][-1] == "The confusion matrix is left out: it would have 101 rows and columns."
    assert len(found.notes) == len(report["notes"]) - 1


def test_scores_too_many_to_resample_leave_the_interval_of_the_auc_out(monkeypatch):
    labels, logits = classified(50)
    whole = score("multi-class", labels, logits, **QUICK)
    monkeypatch.setattr("tfopt.measure.classes.MOST_SCORES", 199)
    found = score("multi-class", labels, logits, **QUICK)
    assert found.values["auc"].to_dict() == {
        "value": whole.values["auc"].value,
        "low": None,
        "high": None,
        "reason": "no interval: 50 labels of 4 classes are more than are resampled",
    }
    assert {**found.values, "auc": None} == {**whole.values, "auc": None}


LABELS, LOGITS = classified(20)
BAD = [
    (("multi-class", LABELS + 1, LOGITS), {}, "targets go from 1 to 4, but the output has 4 classes: expected 0 to 3"),
    (("multi-class", LABELS[:9], LOGITS), {}, r"targets have shape \(9,\), expected \(20,\) integers"),
    (("multi-class", LABELS + 0.5, LOGITS), {}, 'targets have fractions.*take task="regression"'),
    (("multi-class", LABELS, LOGITS[:, 0]), {}, 'outputs have shape .*take task="binary"'),
    (
        ("multi-class", LABELS, LOGITS),
        {"class_names": "abc"},
        "there are 3 class names, the first of them a, b, c, .*tells 4 classes apart",
    ),
    (("multi-class", LABELS[:0], LOGITS[:0]), {}, "there are no examples"),
    (("multi-class", LABELS, LOGITS * np.nan), {}, "outputs hold 80 NaN or infinite values of 80"),
    (("multi-class", LABELS, LOGITS, -np.ones(20)), {}, "weights must be finite and at least 0"),
    (("multi-class", LABELS, LOGITS, np.zeros(20)), {}, "all weights are 0"),
    (("multi-class", LABELS, LOGITS, np.ones(9)), {}, r"weights have shape \(9,\), the labels \(20,\)"),
    (("binary", LABELS, LOGITS[:, 0]), {}, "targets go from 0 to 3, but one output tells two classes apart"),
    (("binary", LABELS, LOGITS), {}, "must have as many values"),
    (("regression", ["a"], [1.0]), {}, "targets must be numbers, received dtype <U1"),
    (("ranking", LABELS, LOGITS), {}, "task must be one of binary, multi-class, regression, received 'ranking'"),
    (("regression", [1.0], [1.0]), {"level": 95}, r"level must be a fraction in \(0, 1\), received 95; .* write 0.95"),
    (("regression", [1.0], [1.0]), {"level": 0.0}, r"level must be a fraction in \(0, 1\), received 0.0"),
    (("regression", [1.0], [1.0]), {"level": 1}, r"level must be a fraction in \(0, 1\), received 1$"),
    (("regression", [1.0], [1.0]), {"resamples": 0}, "resamples must be at least 1, received 0"),
]


@pytest.mark.parametrize(("arguments", "options", "message"), BAD)
def test_bad_input_is_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        score(*arguments, **options)
