"""Training on several replicas and in several processes: equal to one device, or refused."""

import contextlib
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tests.conftest import blobs, small_model
from tests.replica_cases import CASES, POLICIES, examples, model, trained
from tfopt.train.replicas import on_strategy
from tfopt.workers.supervise import local_workers

# In float32 only the order of sums differs. In 16 bits each replica rounds the gradients over its half of a batch, by
# 2^-11 (float16) or 2^-8 (bfloat16) of their size; these are about ten such roundings, of the fourteen steps.
TOLERANCE = {"float32": 1e-4, "mixed_float16": 5e-3, "mixed_bfloat16": 4e-2}
QUICK = [("float32", False, 1)]
MARKED = [
    pytest.param(*case, marks=[pytest.mark.slow] * (case not in QUICK), id="-".join(map(str, case))) for case in CASES
]


def assert_equal(found, alone, policy):
    assert found["steps"] == alone["steps"] == [14]
    for name, values in alone.items():
        if name.endswith("accuracy"):
            # A hair's breadth between two outputs decides of an example: of two at most.
            assert np.asarray(found[name]) == pytest.approx(np.asarray(values), abs=2.1 / 103), name
            continue
        assert np.asarray(found[name]) == pytest.approx(
            np.asarray(values), rel=TOLERANCE[policy], abs=TOLERANCE[policy]
        ), name


def in_processes(script, arguments, count=2, seconds=400):
    """What each of several workers prints, of a script that makes the strategy multi_worker."""
    processes = []
    for workers in local_workers(count):
        environ = {**os.environ, "TF_CONFIG": workers.config(), "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [sys.executable, "-m", script, *arguments]
        processes.append(
            subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    with contextlib.ExitStack() as stack:
        for process in processes:
            stack.enter_context(process)
            stack.callback(process.kill)
        results = [process.communicate(timeout=seconds) for process in processes]
    for process, (_, errors) in zip(processes, results, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [output for output, _ in results]


@pytest.mark.parametrize(("policy", "xla", "steps_per_execution"), MARKED)
def test_two_replicas_train_as_one_device(policy, xla, steps_per_execution, mirrored):
    alone = trained(policy, xla, steps_per_execution, None)
    assert_equal(trained(policy, xla, steps_per_execution, mirrored), alone, policy)


@pytest.mark.parametrize(
    "cases",
    [
        QUICK,
        # One start of two processes for several of them.
        *(
            pytest.param(
                [each for each in CASES if each[0] == policy and each not in QUICK], marks=pytest.mark.slow, id=policy
            )
            for policy in POLICIES
        ),
    ],
)
def test_two_processes_train_as_one_device(cases):
    outputs = in_processes("tests.replica_cases", [json.dumps(cases)])
    for output in outputs:
        results = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        assert [tuple(each["case"]) for each in results] == cases
        for each in results:
            assert_equal(each["found"], trained(*each["case"], None), each["case"][0])


def learn(subject, strategy, batches, micro_batches=1, synchronize_every=1, **options):
    with on_strategy(subject, strategy, micro_batches, synchronize_every) as copy:
        copy.compile(keras.optimizers.SGD(0.05, momentum=0.5), "sparse_categorical_crossentropy", **options)
        return copy.fit(batches, epochs=2, verbose=0, shuffle=False).history["loss"]


@pytest.mark.parametrize("micro_batches", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_a_replica_without_an_example(micro_batches, mirrored):
    x, y = examples()
    batches = tf.data.Dataset.from_tensor_slices((x[:17], y[:17])).batch(16)
    losses, weights = [], []
    for strategy in (mirrored, tf.distribute.get_strategy()):
        subject = model("float32", True)
        parts = micro_batches if strategy is mirrored else 1
        losses.append(learn(subject, strategy, batches, micro_batches=parts, jit_compile=False))
        weights.append(subject.get_weights())
        predicted = subject.predict(x[:17], verbose=0)
        assert predicted.shape == (17, 3)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for ours, theirs in zip(*weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("on", ["one device", pytest.param("two replicas", marks=pytest.mark.slow)])
def test_micro_batches_train_as_the_whole_batch(on, mirrored):
    x, y = examples()
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    strategy = mirrored if on == "two replicas" else tf.distribute.get_strategy()
    whole, parts = model("float32", True), model("float32", True)
    one = learn(whole, tf.distribute.get_strategy(), batches, jit_compile=False)
    assert learn(parts, strategy, batches, micro_batches=3, jit_compile=False) == pytest.approx(one, rel=1e-4)
    for ours, theirs in zip(parts.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_local_sgd_takes_the_mean_of_what_replicas_learn(mirrored):
    x, y = examples()
    batches = tf.data.Dataset.from_tensor_slices((x[:64], y[:64])).batch(16)
    subject = model("float32", True)
    learn(subject, mirrored, batches, synchronize_every=4, steps_per_execution=4, jit_compile=False)
    halves = []
    for half in (0, 1):
        own = np.concatenate([x[start + 8 * half : start + 8 * half + 8] for start in range(0, 64, 16)])
        labels = np.concatenate([y[start + 8 * half : start + 8 * half + 8] for start in range(0, 64, 16)])
        halves.append((own, labels))
    # By hand: each half alone for four steps, then the mean of weights and momenta.
    learners = [model("float32", True) for _ in halves]
    for learner in learners:
        learner.compile(keras.optimizers.SGD(0.05, momentum=0.5), "sparse_categorical_crossentropy", jit_compile=False)
    for _ in range(2):
        for learner, (own, labels) in zip(learners, halves, strict=True):
            learner.fit(own, labels, batch_size=8, shuffle=False, verbose=0)
        pairs = [(*learner.variables, *learner.optimizer.variables) for learner in learners]
        for ours, theirs in zip(*pairs, strict=True):
            if ours.dtype == "float32":
                mean = (ours.numpy() + theirs.numpy()) / 2
                ours.assign(mean)
                theirs.assign(mean)
    for ours, theirs in zip(subject.get_weights(), learners[0].get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@keras.saving.register_keras_serializable("tests")
class OwnStep(keras.Model):
    """A subclassed model with a training step of its own."""

    def __init__(self, **options):
        super().__init__(**options)
        self.dense = keras.layers.Dense(3, activation="softmax")

    def build(self, shape):
        self.dense.build(shape)
        self.built = True

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        self.optimizer.apply_gradients(
            zip(tape.gradient(loss, self.trainable_weights), self.trainable_weights, strict=True)
        )
        self._loss_tracker.update_state(loss * 2)
        return {"loss": self._loss_tracker.result(), "own": tf.constant(7.0)}


def test_own_train_step_is_kept(mirrored):
    subject = OwnStep(name="own")
    subject.build((None, 4))
    paths = [each.path for each in subject.variables]
    x, y = np.random.default_rng(0).normal(size=(32, 4)).astype("float32"), np.arange(32) % 3
    before = subject.get_weights()
    with on_strategy(subject, mirrored) as copy:
        copy.compile("sgd", "sparse_categorical_crossentropy", steps_per_execution=2)
        history = copy.fit(x, y, batch_size=8, epochs=1, verbose=0, shuffle=False).history
        assert [each.path for each in copy.variables] == paths
    assert history["own"] == [7.0]
    assert not np.array_equal(before[0], subject.get_weights()[0])
    assert type(subject) is OwnStep


def test_model_comes_back_as_it_went_in(mirrored):
    subject = small_model()
    subject.get_layer("conv").kernel.trainable = False
    frozen = subject.get_layer("conv").kernel.numpy()
    before = [(each.path, each.trainable, type(each.value).__name__) for each in subject.variables]
    x, y = blobs(48)
    with on_strategy(subject, mirrored) as copy:
        copy.compile("adam", "sparse_categorical_crossentropy")
        copy.fit(x, y, batch_size=24, verbose=0)
        assert copy.get_layer("bn").synchronized
    assert [(each.path, each.trainable, type(each.value).__name__) for each in subject.variables] == before
    assert not subject.get_layer("bn").synchronized
    np.testing.assert_array_equal(subject.get_layer("conv").kernel.numpy(), frozen)
    assert subject.get_layer("bn").moving_mean.numpy().any()


@pytest.mark.parametrize(
    ("fit", "batch_size", "examples", "words"),
    [
        ({"jit_compile": True}, 24, 240, "statistics of the whole batch"),
        ({}, 25, 240, "multiple of: take 26"),
        ({}, 24, 145, "last batch of an epoch has 1 examples for 2 replicas"),
    ],
)
def test_refused_before_training(fit, batch_size, examples, words, mirrored, tmp_path):
    images = blobs(examples)
    data = tfopt.from_arrays(images, images, images, batch_size=batch_size)
    work = tfopt.Work(model=small_model(), data=data, workdir=tmp_path, strategy=mirrored)
    with pytest.raises(ValueError, match=words):
        tfopt.run([tfopt.Train(1, fit=tfopt.Fit(**fit))], work)
    assert not list(tmp_path.glob("01-*"))


@pytest.mark.parametrize(
    ("loss", "options", "words"),
    [
        (keras.losses.SparseCategoricalCrossentropy(reduction="sum"), {}, "reduction='sum'"),
        ("mse", {"optimizer": keras.optimizers.SGD(gradient_accumulation_steps=2)}, "pass micro_batches"),
    ],
)
def test_compile_refuses_what_replicas_cannot_add_up(loss, options, words, mirrored):
    with on_strategy(model("float32", True), mirrored) as copy, pytest.raises(ValueError, match=words):
        copy.compile(**{"optimizer": "sgd", "loss": loss, **options})


@pytest.mark.parametrize(
    ("stages", "key"),
    [
        ([tfopt.Train(2)], "train"),
        pytest.param([tfopt.Prune(0.5, epochs=2)], "prune", marks=pytest.mark.slow),
        pytest.param([tfopt.Cluster(8, epochs=2)], "cluster", marks=pytest.mark.slow),
        pytest.param(
            [tfopt.QuantizeAware(2, fit=tfopt.Fit(1e-2, steps_per_execution=3))], "quantize", marks=pytest.mark.slow
        ),
    ],
)
def test_stages_train_as_on_one_device(stages, key, mirrored, trained, data, tmp_path):
    found = {}
    for name, strategy in (("two", mirrored), ("one", "one_device")):
        work = tfopt.Work(model=trained, data=data, workdir=tmp_path / name, strategy=strategy)
        after = tfopt.run(stages, work)
        found[name] = after.report.stages[0].history, after.model.get_weights()
    for series, values in found["one"][0].items():
        assert found["two"][0][series] == pytest.approx(values, rel=1e-3, abs=1e-5), series
    for ours, theirs in zip(found["two"][1], found["one"][1], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=2e-3)


@keras.saving.register_keras_serializable("tests")
class Idle(keras.layers.Layer):
    """Has a weight that it does not use."""

    supports_masking = True

    def build(self, shape):
        self.add_weight(name="idle")

    def call(self, x):
        return x


@pytest.mark.filterwarnings("ignore:Gradients do not exist:UserWarning")
@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_micro_batches_keep_masks_and_take_what_has_no_gradient(mirrored, jit_compile):
    layers = keras.layers
    inputs = keras.Input((5,), dtype="int32")
    x = Idle()(layers.Embedding(7, 4, mask_zero=True)(inputs))
    subject = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
    rng = np.random.default_rng(0)
    words, labels = rng.integers(1, 7, (14, 5)), rng.integers(0, 3, (14, 5))
    words[:, 3:] = 0
    batches = tf.data.Dataset.from_tensor_slices((words, labels)).batch(7)
    found = []
    for micro_batches, strategy in ((1, tf.distribute.get_strategy()), (3, mirrored)):
        with on_strategy(subject, strategy, micro_batches) as copy:
            # Standing still, so that each step sees the same weights.
            options = {"metrics": ["accuracy"], "jit_compile": jit_compile and strategy is mirrored}
            copy.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy", **options)
            found.append(copy.fit(batches, verbose=0, shuffle=False).history["accuracy"])
    assert found[0] == pytest.approx(found[1])


@pytest.mark.parametrize(("asked", "tuned"), [(None, False), (True, True)])
def test_iterators_on_a_strategy_have_no_thread_that_tunes_them_unless_asked(mirrored, asked, tuned, monkeypatch):
    options = tf.data.Options()
    if asked is not None:
        options.autotune.enabled = asked
    batches = tf.data.Dataset.from_tensors((np.ones((4, 3)), np.ones((4, 1)))).with_options(options)
    seen, share = [], mirrored.experimental_distribute_dataset
    # What TensorFlow is handed at last.
    monkeypatch.setattr(
        mirrored,
        "experimental_distribute_dataset",
        lambda data, *rest: seen.append(data.options()) or share(data, *rest),
    )
    with on_strategy(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]), mirrored) as copy:
        copy.compile("sgd", "mse", jit_compile=False)
        copy.fit(batches, shuffle=False, verbose=0)
    assert [each.autotune.enabled for each in seen] == [tuned]
    shards = {each.experimental_distribute.auto_shard_policy for each in seen}
    assert shards == {tf.data.experimental.AutoShardPolicy.DATA}
