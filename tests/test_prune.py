"""Pruning: the masks' maths, and the promise kept at every step under every way to run one."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import tfopt
from tests.conftest import blobs, quick, small_model
from tfopt.kernels import select_kernels
from tfopt.prune.magnitude import magnitude_mask, measure_sparsity
from tfopt.prune.masks import GLOBAL

KERNELS = {"conv/kernel": 144, "hidden/kernel": 1536, "out/kernel": 36}

weights = arrays.arrays(
    "float32",
    arrays.array_shapes(min_dims=1, max_dims=4, max_side=7),
    elements=st.floats(-2, 2, width=16),
)


def mask_of(values, sparsity, mask=None):
    return keras.ops.convert_to_numpy(magnitude_mask(values, sparsity, mask))


@given(weights, st.floats(0, 0.99))
@settings(max_examples=80, deadline=None)
def test_mask_removes_exactly_the_asked_number_of_smallest_weights(values, sparsity):
    mask = mask_of(values, sparsity)
    assert mask.shape == values.shape
    assert set(np.unique(mask)) <= {0.0, 1.0}
    assert int((mask == 0).sum()) == round(sparsity * values.size)
    kept, removed = np.abs(values[mask == 1]), np.abs(values[mask == 0])
    assert not kept.size or not removed.size or removed.max() <= kept.min()


@given(weights, st.floats(0, 0.9), st.floats(0, 0.09))
@settings(max_examples=50, deadline=None)
def test_a_rising_sparsity_never_brings_a_weight_back(values, first, more):
    old = mask_of(values, first)
    drifted = values + np.float32(3) * (1 - old)
    new = mask_of(drifted, first + more, old)
    assert (new <= old).all()


@given(weights)
@settings(max_examples=20, deadline=None)
def test_zero_sparsity_keeps_all(values):
    assert (mask_of(values, 0.0) == 1).all()


def test_a_falling_sparsity_brings_back_the_largest():
    values = np.array([1.0, 0.2, 0.9, 0.1], "float32")
    assert mask_of(values, 0.25, np.array([1.0, 0, 1, 0])).tolist() == [1, 1, 1, 0]


class EveryStep(keras.callbacks.Callback):
    """Reads the share of zeros after every call of the training function."""

    def __init__(self, variables):
        super().__init__()
        self.variables, self.seen = variables, []

    def on_train_batch_end(self, batch, logs=None):
        optimizer = self.model.optimizer
        step = int(getattr(optimizer, "inner_optimizer", optimizer)._iterations.numpy())
        self.seen.append((step, [measure_sparsity(each) for each in self.variables]))


def pruned(schedule, *, epochs=3, before=0, strategy=None, policy="float32", criterion="magnitude", **compiling):
    """Trains a small model under a schedule; returns (model, callback, what each step showed, last loss)."""
    x, y = blobs(96)
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy(policy)
    try:
        with (strategy or tf.distribute.get_strategy()).scope():
            model = small_model()
            model.layers[2].dtype_policy = policy
            compiling.setdefault("jit_compile", False)
            compiling.setdefault("optimizer", "adam")
            model.compile(loss="sparse_categorical_crossentropy", **compiling)
    finally:
        keras.config.set_dtype_policy("float32")
    if before:
        model.fit(x, y, batch_size=8, epochs=before, verbose=0, shuffle=False)
    callback = tfopt.PruningCallback(schedule, criterion=criterion)
    watch = EveryStep([layer.kernel for layer in model.layers if hasattr(layer, "kernel")])
    history = model.fit(x, y, batch_size=8, epochs=epochs, verbose=0, shuffle=False, callbacks=[callback, watch])
    return model, callback, watch.seen, history.history["loss"][-1]


def expected_share(schedule, step, size):
    last = max((each for each in range(step + 1) if schedule(each)[0]), default=None)
    return 0.0 if last is None else round(float(schedule(last)[1]) * size) / size


SCHEDULE = tfopt.PolynomialDecay(0.1, 0.8, begin_step=0, end_step=29, frequency=7)
WAYS = {
    "plain": {},
    "steps_per_execution": {"steps_per_execution": 4},
    "xla": {"jit_compile": True},
    "xla, steps_per_execution": {"jit_compile": True, "steps_per_execution": 5},
    "mixed_bfloat16": {"policy": "mixed_bfloat16"},
    "mixed_float16": {"policy": "mixed_float16"},
    "sgd": {"optimizer": keras.optimizers.SGD},
    "clipping": {"optimizer": lambda: keras.optimizers.Adam(global_clipnorm=1.0)},
}


@pytest.mark.parametrize("way", quick(WAYS, "plain", "xla", "mixed_float16"))
def test_masks_hold_at_every_step_and_the_end_is_exact(way):
    options = dict(WAYS[way])
    if callable(options.get("optimizer")):
        options["optimizer"] = options["optimizer"]()
    model, callback, seen, _ = pruned(SCHEDULE, **options)
    assert len(seen) >= 36 // options.get("steps_per_execution", 1)
    for step, shares in seen:
        assert shares == [expected_share(SCHEDULE, step, size) for size in KERNELS.values()], step
    assert callback.sparsity == {path: round(0.8 * size) / size for path, size in KERNELS.items()}
    assert callback.skipped == [{"layer": "bn", "reason": "has no kernel of two or more dimensions"}]
    assert model.get_layer("hidden").bias.constraint is None


@pytest.mark.slow
def test_steps_per_execution_and_xla_change_nothing():
    losses = {way: pruned(SCHEDULE, **WAYS[way])[3] for way in ("plain", "steps_per_execution", "xla")}
    assert losses["steps_per_execution"] == losses["plain"]
    assert losses["xla"] == pytest.approx(losses["plain"], rel=1e-4)


def test_two_replicas_prune_as_one_device_does(mirrored):
    # Batch normalization sees half a batch on each replica; its statistics are not the subject here.
    _, callback, seen, _ = pruned(SCHEDULE, strategy=mirrored)
    for step, shares in seen:
        assert shares == [expected_share(SCHEDULE, step, size) for size in KERNELS.values()], step
    assert set(callback.sparsity) == set(KERNELS)


@pytest.mark.parametrize("criterion", quick(["global_magnitude", "lamp", "movement", "taylor"], "movement"))
def test_replicas_have_the_same_zeros(criterion, mirrored):
    schedule = tfopt.PolynomialDecay(0.1, 0.8, begin_step=7, end_step=29, frequency=7)
    model, _, seen, _ = pruned(schedule, strategy=mirrored, criterion=criterion)
    kernels = [layer.kernel for layer in model.layers if hasattr(layer, "kernel")]
    zeros = 0
    for kernel in kernels:
        one, other = (np.asarray(each) for each in mirrored.experimental_local_results(kernel._value))
        assert np.array_equal(one, other)
        zeros += np.count_nonzero(one == 0)
    total = sum(KERNELS.values())
    by_layer = sum(round(0.8 * size) for size in KERNELS.values())
    assert zeros == (round(0.8 * total) if criterion in GLOBAL else by_layer)
    assert [step for step, _ in seen] == list(range(1, 37))


def test_starts_where_the_optimizer_stands():
    _, callback, seen, _ = pruned(SCHEDULE, before=2)
    assert seen[0][0] == 25
    for step, shares in seen:
        assert shares == [expected_share(SCHEDULE, step - 24, size) for size in KERNELS.values()]
    assert min(callback.sparsity.values()) > 0.79


def test_gradient_accumulation_prunes_at_the_same_steps():
    optimizer = keras.optimizers.Adam(gradient_accumulation_steps=3)
    _, _, seen, _ = pruned(SCHEDULE, optimizer=optimizer)
    assert [shares[1] for _, shares in seen] == [expected_share(SCHEDULE, step, 1536) for step, _ in seen]


def test_an_averaging_optimizer_cannot_bring_weights_back():
    optimizer = keras.optimizers.Adam(use_ema=True, ema_momentum=0.9)
    _, callback, _, _ = pruned(SCHEDULE, optimizer=optimizer)
    assert callback.sparsity == {path: round(0.8 * size) / size for path, size in KERNELS.items()}


def test_a_users_own_constraint_is_kept():
    x, y = blobs(48)
    model = small_model()
    kernel = model.get_layer("hidden").kernel
    kernel.constraint = keras.constraints.NonNeg()
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(x, y, verbose=0, callbacks=[tfopt.PruningCallback(tfopt.ConstantSparsity(0.5, 0))])
    values = kernel.numpy()
    assert values.min() >= 0
    assert (values == 0).mean() >= 0.5


def test_zeros_outlive_a_later_fit_without_the_callback():
    x, y = blobs(96)
    model, _, _, _ = pruned(SCHEDULE)
    before = {each.path: each.numpy() == 0 for each in model.trainable_variables if "kernel" in each.path}
    model.fit(x, y, epochs=2, verbose=0)
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(x, y, epochs=1, verbose=0)
    for variable in model.trainable_variables:
        if variable.path in before:
            assert ((variable.numpy() == 0) == before[variable.path]).all()


def test_goes_on_in_a_second_fit_and_after_backup_and_restore(tmp_path):
    x, y = blobs(96)
    options = {"batch_size": 8, "verbose": 0, "shuffle": False}

    def start():
        keras.utils.set_random_seed(1)
        model = small_model()
        model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
        return model, tfopt.PruningCallback(SCHEDULE)

    class Crash(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    whole, callback = start()
    whole.fit(x, y, epochs=3, callbacks=[callback], **options)
    broken, callback = start()
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(KeyboardInterrupt):
        broken.fit(x, y, epochs=3, callbacks=[callback, Crash(), backup], **options)
    resumed, callback = start()
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    resumed.fit(x, y, epochs=3, callbacks=[callback, backup], **options)
    for one, other in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        assert np.array_equal(one, other)


def test_subclassed_and_nested_models_are_pruned():
    @keras.saving.register_keras_serializable("tests")
    class Plain(keras.Model):
        def __init__(self, **options):
            super().__init__(**options)
            self.flat = keras.layers.Flatten()
            self.inner = keras.Sequential([keras.layers.Dense(8, activation="relu"), keras.layers.Dense(8)])
            self.head = keras.layers.Dense(3)

        def call(self, inputs):
            return self.head(self.inner(self.flat(inputs)))

    x, y = blobs(48)
    model = Plain()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    with pytest.raises(ValueError, match="not built"):
        tfopt.PruningCallback(tfopt.ConstantSparsity(0.5, 0)).set_model(model)
    model(x[:1])
    callback = tfopt.PruningCallback(tfopt.ConstantSparsity(0.5, 0))
    model.fit(x, y, verbose=0, callbacks=[callback])
    assert len(callback.sparsity) == 3
    assert set(callback.sparsity.values()) == {0.5}


def test_targets_leave_out_depthwise_and_frozen_layers_with_the_reason():
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.SeparableConv2D(4, 3, name="separable"),
            layers.DepthwiseConv2D(3, name="depthwise"),
            layers.Conv2D(4, 1, name="frozen", trainable=False),
            layers.Flatten(),
            layers.Dense(2, name="head"),
        ]
    )
    variables, skipped = select_kernels(model)
    assert [each.path.split("/", 1)[-1] for each in variables] == ["separable/pointwise_kernel", "head/kernel"]
    reasons = {each["layer"]: each["reason"] for each in skipped}
    assert "in layers selected by name" in reasons["depthwise"]
    assert reasons["frozen"] == "not trainable"
    by_name, _ = select_kernels(model, ["depthwise"])
    assert [each.path.split("/", 1)[-1] for each in by_name] == ["depthwise/kernel"]
    predicate, _ = select_kernels(model, lambda layer: isinstance(layer, layers.Dense))
    assert len(predicate) == 1


def test_embeddings_and_recurrent_kernels_are_pruned():
    model = keras.Sequential([keras.Input((5,)), keras.layers.Embedding(20, 4), keras.layers.GRU(3)])
    assert sorted(each.name for each in select_kernels(model)[0]) == ["embeddings", "kernel", "recurrent_kernel"]


def test_bad_input_is_refused_before_the_first_step():
    x, y = blobs(48)
    model = small_model()
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    before = model.get_weights()

    def fit(callback, **options):
        model.fit(x, y, batch_size=8, verbose=0, callbacks=[callback], **options)

    with pytest.raises(ValueError, match="at step 13, but only 12 steps are planned"):
        fit(tfopt.PruningCallback(tfopt.PolynomialDecay(0, 0.8, 0, 13)), epochs=2)
    with pytest.raises(ValueError, match="at step 7, but only 6 steps"):
        fit(tfopt.PruningCallback(tfopt.PolynomialDecay(0, 0.8, 0, 7)), epochs=3, initial_epoch=2)
    with pytest.raises(ValueError, match=r"has no layer 'hiden'; did you mean 'hidden'\?"):
        fit(tfopt.PruningCallback(tfopt.ConstantSparsity(0.5, 0), layers=["hiden"]))
    with pytest.raises(ValueError, match="selects none of the"):
        fit(tfopt.PruningCallback(tfopt.ConstantSparsity(0.5, 0), layers=lambda layer: False))
    with pytest.raises(ValueError, match=r"no layer that can be pruned \(.*bn: has no kernel"):
        fit(tfopt.PruningCallback(tfopt.ConstantSparsity(0.5, 0), layers=["bn"]))
    with pytest.raises(TypeError, match="schedule must be a PolynomialDecay"):
        tfopt.PruningCallback(0.8)
    for one, other in zip(before, model.get_weights(), strict=True):
        assert np.array_equal(one, other)


def test_a_training_that_was_stopped_early_says_so():
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    x, y = blobs(48)
    model = small_model()
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    callback = tfopt.PruningCallback(tfopt.PolynomialDecay(0.0, 0.8, 0, 12))
    with pytest.raises(RuntimeError, match="training ended after 6 steps, the pruning schedule only at step 12"):
        model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[callback, Stop()])
