"""Sparsity schedules against their formula, against TFMOT, and at the ends of their windows."""

import subprocess
import sys

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfopt.schedules import ConstantSparsity, PolynomialDecay, check_plan, due_and_sparsity, last_update

windows = st.tuples(st.integers(0, 50), st.integers(1, 500)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(
    final=st.floats(0, 0.99),
    initial=st.floats(0, 0.99),
    window=windows,
    power=st.floats(0.5, 5),
    frequency=st.integers(1, 1000),
)
@settings(max_examples=60, deadline=None)
def test_reaches_the_final_sparsity_exactly_at_end_step_whatever_the_frequency(
    final, initial, window, power, frequency
):
    begin, end = window
    schedule = PolynomialDecay(initial, final, begin, end, power, frequency)
    assert schedule(end) == (True, final)
    assert schedule(begin)[0]
    assert schedule(begin)[1] == pytest.approx(initial)
    assert not schedule(end + 1)[0]


@given(st.floats(0, 0.99), windows, st.floats(0.5, 5))
@settings(max_examples=60, deadline=None)
def test_rises_without_a_fall(final, window, power):
    begin, end = window
    schedule = PolynomialDecay(0.0, final, begin, end, power)
    values = [schedule(step)[1] for step in range(begin, end + 1, max(1, (end - begin) // 20))]
    assert values == sorted(values)


def test_updates_fall_on_multiples_of_frequency_and_on_the_end():
    schedule = PolynomialDecay(0.0, 0.5, begin_step=5, end_step=18, frequency=5)
    assert [step for step in range(30) if schedule(step)[0]] == [5, 10, 15, 18]
    forever = ConstantSparsity(0.5, begin_step=3, frequency=10)
    assert [step for step in range(30) if forever(step)[0]] == [3, 13, 23]


def test_tensors_give_what_ints_give():
    schedule = PolynomialDecay(0.1, 0.9, 3, 77, frequency=9)
    for step in range(0, 90, 7):
        due, sparsity = due_and_sparsity(schedule, tf.constant(step, tf.int64))
        assert (bool(due), float(sparsity)) == pytest.approx(schedule(step), abs=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PolynomialDecay(0.0, 80, 0, 10), "for 80 % write 0.8"),
        (lambda: PolynomialDecay(0.0, 1.0, 0, 10), r"final_sparsity must be a fraction in \[0, 1\)"),
        (lambda: PolynomialDecay(-0.1, 0.5, 0, 10), "initial_sparsity must be a fraction"),
        (lambda: PolynomialDecay(0.0, 0.5, 10, 10), "begin_step=10, end_step=10"),
        (lambda: PolynomialDecay(0.0, 0.5, -1, 10), "begin_step must be at least 0"),
        (lambda: PolynomialDecay(0.0, 0.5, 0, 10, power=0), "power must be above 0"),
        (lambda: PolynomialDecay(0.0, 0.5, 0, 10, frequency=0), "frequency must be at least 1"),
        (lambda: ConstantSparsity(True, 0), "target_sparsity must be a fraction"),
        (lambda: ConstantSparsity(0.5, 10, end_step=9), "end_step must be -1"),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_plan_that_ends_too_early_is_refused():
    check_plan(PolynomialDecay(0.0, 0.8, 0, 100), 100)
    with pytest.raises(ValueError, match="at step 100, but only 99 steps are planned"):
        check_plan(PolynomialDecay(0.0, 0.8, 0, 100), 99)
    assert last_update(ConstantSparsity(0.5, 40)) == 40


TFMOT = """
import numpy as np
from tensorflow_model_optimization.sparsity import keras as theirs  # sets TF_USE_LEGACY_KERAS: alone in its process
import keras, tensorflow as tf
import tfopt
same = theirs.PolynomialDecay(0.0, 0.8, 2, 50, power=3, frequency=6)
ours = tfopt.PolynomialDecay(0.0, 0.8, 2, 50, power=3, frequency=6)
for step in range(0, 60):
    assert abs(float(same(tf.constant(step))[1]) - ours(step)[1]) < 1e-6, step
for schedule, expected in ((theirs.PolynomialDecay(0.0, 0.8, 0, 29, frequency=7), 0.8),
                           (theirs.ConstantSparsity(0.5, begin_step=0, frequency=4), 0.5)):
    model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(10), keras.layers.Dense(1)])
    model.compile("adam", "mse", jit_compile=False)
    callback = tfopt.PruningCallback(schedule)
    model.fit(np.random.randn(80, 10), np.ones(80), batch_size=8, epochs=3, verbose=0, callbacks=[callback])
    assert set(callback.sparsity.values()) == {expected}, callback.sparsity
try:
    model.fit(np.ones((8, 10)), np.ones(8), verbose=0,
              callbacks=[tfopt.PruningCallback(theirs.PolynomialDecay(0.0, 0.8, 0, 100))])
except ValueError as error:
    assert "at step 100, but only 1 steps" in str(error)
    print("fine")
"""


@pytest.mark.slow
def test_tfmots_own_schedules_are_taken_and_agree():
    done = subprocess.run([sys.executable, "-c", TFMOT], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "fine", done.stderr[-3000:]
