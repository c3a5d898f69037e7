"""`Distiller` in anyone's `compile` and `fit`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tests.conftest import blobs
from tests.test_distill_losses import sigmoid, softmax
from tfopt.distill import Attention, Distiller, Hint, Relational
from tfopt.train.replicas import on_strategy

LAYERS = keras.layers


def network(width, logits=False, seed=0, regularizer=None):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8, 8, 2), name="image")
    x = LAYERS.Conv2D(width, 3, 2, padding="same", activation="relu", kernel_regularizer=regularizer, name="conv")(
        inputs
    )
    x = LAYERS.Conv2D(width, 3, padding="same", activation="relu", name="last")(x)
    x = LAYERS.GlobalAveragePooling2D(name="pool")(x)
    outputs = LAYERS.Dense(3, activation=None if logits else "softmax", name="out")(x)
    return keras.Model(inputs, outputs, name=f"net{width}")


@pytest.fixture(scope="module")
def teacher():
    model = network(12, logits=True)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    x, y = blobs()
    model.fit(x, y, batch_size=24, epochs=3, verbose=0)
    return model


def compiled(student, teacher, loss="sparse_categorical_crossentropy", optimizer="sgd", **options):
    distiller = Distiller(student, teacher, **options)
    distiller.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    return distiller


def losses_of(distiller, x, y, weights=None):
    """(loss in training, loss in evaluation)."""
    distiller._symbolic_build(data_batch=(x, y) if weights is None else (x, y, weights))
    return [
        float(distiller.compute_loss(x, y, distiller(x, training=training), weights, training=training))
        for training in (True, False)
    ]


def divergence(teacher, student, temperature):
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    return temperature**2 * (p * np.log(p / q)).sum(-1)


@pytest.mark.parametrize("student_logits", [False, True])
@pytest.mark.parametrize("teacher_logits", [False, True])
def test_loss_by_hand(teacher_logits, student_logits):
    x, y = blobs(24)
    models = network(4, student_logits, 1), network(6, teacher_logits, 2)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=student_logits)
    distiller = compiled(*models, loss=loss, temperature=3.0, alpha=0.7)
    weights = np.linspace(0, 2, 24).astype("float32")
    z, t = (
        each if is_logits else np.log(each)
        for each, is_logits in zip(
            (model.predict(x, verbose=0) for model in models), (student_logits, teacher_logits), strict=True
        )
    )
    hard = -np.log(softmax(z))[np.arange(24), y]
    total, own = losses_of(distiller, x, y, weights)
    assert own == pytest.approx((weights * hard).mean(), rel=1e-5)
    assert total == pytest.approx((weights * (0.3 * hard + 0.7 * divergence(t, z, 3.0))).mean(), rel=1e-4)


def test_binary_classes_and_plain_numbers():
    x = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
    y = (x[:, :1] > 0).astype("float32")

    def line(seed, activation):
        keras.utils.set_random_seed(seed)
        return keras.Sequential([keras.Input((4,)), LAYERS.Dense(1, activation)])

    student, master = line(0, "sigmoid"), line(1, None)
    distiller = compiled(student, master, "binary_crossentropy", alpha=1.0, temperature=2.0)
    p, q = sigmoid(master.predict(x, verbose=0) / 2), student.predict(x, verbose=0)
    q = sigmoid(np.log(q / (1 - q)) / 2)
    by_hand = 4 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    assert losses_of(distiller, x, y)[0] == pytest.approx(by_hand.mean(), rel=1e-4)
    student = line(0, None)
    distiller = compiled(student, master, "mse", alpha=1.0)
    by_hand = (student.predict(x, verbose=0) - master.predict(x, verbose=0)) ** 2
    assert losses_of(distiller, x, y)[0] == pytest.approx(by_hand.mean(), rel=1e-4)


def test_regularization_stays_whole(teacher):
    x, y = blobs(24)
    plain, regular = (
        losses_of(compiled(network(4, seed=1, regularizer=each), teacher, alpha=0.8), x, y) for each in (None, "l2")
    )
    assert regular[0] - plain[0] == pytest.approx(regular[1] - plain[1], rel=1e-3)
    assert regular[0] > plain[0]


def test_features_by_hand(teacher):
    x, y = blobs(24)
    student = network(6, seed=1)
    features = [Hint("conv", weight=0.5), Attention("last", weight=2.0), Relational("pool", angle=0.0)]
    distiller = compiled(student, teacher, alpha=0.0, features=features)
    # The output of one is 6 channels wide, of the other 12.
    (projection,) = distiller.projections
    weights = np.arange(24, dtype="float32") / 12
    total, own = losses_of(distiller, x, y, weights)
    seen = [
        [keras.Model(model.inputs, model.get_layer(name).output).predict(x, verbose=0) for model in (teacher, student)]
        for name in ("conv", "last", "pool")
    ]
    theirs, ours = seen[0]
    hint = ((theirs - ours @ projection.matrix.numpy()) ** 2).mean((1, 2, 3))
    maps = [(each**2).sum(-1).reshape(24, -1) for each in seen[1]]
    maps = [each / np.linalg.norm(each, axis=-1, keepdims=True) for each in maps]
    attention = ((maps[0] - maps[1]) ** 2).sum(-1)
    pairs = weights[:, None] * weights * (1 - np.eye(24))
    distances = [np.linalg.norm(each[:, None] - each, axis=-1) for each in seen[2]]
    distances = [each / ((pairs * each).sum() / pairs.sum()) for each in distances]
    gap = abs(distances[0] - distances[1])
    relations = (pairs * np.where(gap <= 1, gap**2 / 2, gap - 0.5)).sum() / pairs.sum()
    by_hand = (weights * (0.5 * hint + 2.0 * attention)).mean() + relations
    assert total - own == pytest.approx(by_hand, rel=1e-3)


def test_features_of_other_sizes_are_averaged(teacher):
    x, y = blobs(24)
    inputs = keras.Input((8, 8, 2))
    fine = LAYERS.Conv2D(12, 3, padding="same", name="fine")(inputs)
    outputs = LAYERS.Dense(3, "softmax")(LAYERS.GlobalMaxPooling2D()(fine))
    distiller = compiled(keras.Model(inputs, outputs), teacher, alpha=0.0, features=[("fine", "conv")])
    total, own = losses_of(distiller, x, y)
    ours = keras.Model(inputs, fine).predict(x, verbose=0).reshape(24, 4, 2, 4, 2, 12).mean((2, 4))
    theirs = keras.Model(teacher.inputs, teacher.get_layer("conv").output).predict(x, verbose=0)
    assert total - own == pytest.approx(((ours - theirs) ** 2).mean(), rel=1e-4)


def test_gradients_flow_to_the_student_alone(teacher):
    x, y = blobs()
    student = network(4, seed=1)
    paths = [each.path for each in student.variables]
    before = [each.numpy() for each in (*teacher.variables, *student.variables)]
    trainable = [each.trainable for each in teacher.variables]
    distiller = compiled(student, teacher, optimizer="adam", features=[("conv", "conv")])
    known = {id(each) for each in teacher.variables}
    assert not any(id(each) in known for each in (*distiller.variables, *distiller.optimizer.variables))
    assert len(distiller.variables) == len(student.variables) + 1
    history = distiller.fit(x, y, batch_size=24, epochs=3, verbose=0, validation_data=(x, y)).history
    after = [each.numpy() for each in (*teacher.variables, *student.variables)]
    count = len(teacher.variables)
    assert all(map(np.array_equal, before[:count], after[:count]))
    assert not any(map(np.array_equal, before[count:], after[count:]))
    assert [each.trainable for each in teacher.variables] == trainable
    assert history["loss"][-1] < history["loss"][0]
    # What is kept is an ordinary model, and evaluation is its own.
    assert [each.path for each in student.variables] == paths
    student.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    alone = student.evaluate(x, y, verbose=0, return_dict=True)
    assert history["val_loss"][-1] == pytest.approx(alone["loss"], rel=1e-5)
    assert history["val_accuracy"][-1] == pytest.approx(alone["accuracy"])


def test_a_student_without_targets_learns_the_teachers_answers(teacher):
    x, y = blobs()
    student = network(6, seed=1)
    distiller = compiled(student, teacher, optimizer=keras.optimizers.Adam(0.02), alpha=1.0)
    # Wrong labels: what is right, the teacher says.
    distiller.fit(x, (y + 1) % 3, batch_size=24, epochs=6, verbose=0)
    assert (student.predict(x, verbose=0).argmax(-1) == teacher.predict(x, verbose=0).argmax(-1)).mean() > 0.9


def test_saved_and_read_back_it_goes_on_as_before(teacher, tmp_path):
    x, y = blobs()

    def learn(epochs, distiller):
        for _ in range(epochs):
            distiller.fit(x, y, batch_size=24, shuffle=False, verbose=0)
        return distiller

    options = {"optimizer": "adam", "features": [("conv", "conv")], "temperature": 2.0, "alpha": 0.9}
    whole = learn(2, compiled(network(4, seed=1), teacher, **options))
    learn(1, compiled(network(4, seed=1), teacher, **options)).save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert loaded.teacher.digest == whole.teacher.digest
    learn(1, loaded)
    for ours, theirs in zip(loaded.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("outputs", ["dict", "list"])
def test_several_outputs(outputs):
    x = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")

    def two(seed):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((4,))
        parts = {"kind": LAYERS.Dense(3, "softmax", name="kind")(inputs), "age": LAYERS.Dense(1, name="age")(inputs)}
        return keras.Model(inputs, parts if outputs == "dict" else [parts["kind"], parts["age"]])

    student, master = two(0), two(1)
    targets = {"kind": np.arange(16) % 3, "age": np.ones((16, 1), "float32")}
    loss = {"kind": "sparse_categorical_crossentropy", "age": "mse"}
    if outputs == "list":
        targets, loss = [targets["kind"], targets["age"]], [loss["kind"], loss["age"]]
    weights = {"kind": 1.0, "age": 0.25} if outputs == "dict" else [1.0, 0.25]
    distiller = Distiller(student, master, temperature=2.0, alpha=1.0)
    distiller.compile("sgd", loss, loss_weights=weights, jit_compile=False)
    total, _ = losses_of(distiller, x, targets)
    (kind, age), (its_kind, its_age) = (
        (found["kind"], found["age"]) if outputs == "dict" else found
        for found in (model.predict(x, verbose=0) for model in (student, master))
    )
    by_hand = divergence(np.log(its_kind), np.log(kind), 2.0).mean() + 0.25 * ((age - its_age) ** 2).mean()
    assert total == pytest.approx(by_hand, rel=1e-4)


def test_masked_steps_do_not_count():
    tokens = np.array([[1, 2, 3, 0], [4, 1, 0, 0]])

    def tagger(seed):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((4,), dtype="int32")
        x = LAYERS.LSTM(5, return_sequences=True, name="lstm")(LAYERS.Embedding(6, 3, mask_zero=True)(inputs))
        model = keras.Model(inputs, LAYERS.Dense(3, "softmax", name="out")(x))
        model.set_weights([5 * each for each in model.get_weights()])
        return model

    student, master = tagger(0), tagger(1)
    distiller = compiled(student, master, alpha=1.0, temperature=2.0, features=[("lstm", "lstm")])
    total, _ = losses_of(distiller, tokens, np.zeros((2, 4)))
    soft = divergence(np.log(master.predict(tokens, verbose=0)), np.log(student.predict(tokens, verbose=0)), 2.0)
    seen = [
        keras.Model(each.inputs, each.get_layer("lstm").output).predict(tokens, verbose=0) for each in (student, master)
    ]
    known = tokens != 0
    hint = ((seen[0] - seen[1]) ** 2 * known[..., None]).mean()
    assert total == pytest.approx(soft[known].mean() + hint, rel=1e-4)


def test_callbacks_see_the_student(teacher):
    x, y = blobs()
    student = network(4, seed=1)
    distiller = compiled(student, teacher, optimizer="adam", features=[("conv", "conv")])
    pruning = tfopt.PruningCallback(tfopt.ConstantSparsity(0.5, begin_step=0))
    distiller.fit(x, y, batch_size=24, verbose=0, callbacks=[pruning])
    assert set(pruning.sparsity) == {each.path for each in student.variables if each.name == "kernel"}
    assert pruning.invariant.check(student) == []
    assert set(pruning.sparsity.values()) == {0.5}


@pytest.mark.parametrize("micro_batches", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_two_replicas_learn_as_one_device(micro_batches, mirrored, teacher):
    x, y = blobs(103)
    weights = np.linspace(0.5, 1.5, 103).astype("float32")
    # The last batch has 7 examples, of which the replicas get unequal shares.
    batches = tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(24)
    found = []
    for strategy in (None, mirrored):
        student = network(4, seed=1)
        distiller = Distiller(student, teacher, features=[("conv", "conv"), Attention("last")])

        def learn(model):
            model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", jit_compile=False)
            return model.fit(batches, epochs=2, shuffle=False, verbose=0).history["loss"]

        if strategy is None:
            losses = learn(distiller)
        else:
            with on_strategy(distiller, strategy, micro_batches) as copy:
                losses = learn(copy)
        found.append((losses, student.get_weights()))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-4)
    for ours, theirs in zip(found[1][1], found[0][1], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_relations_need_the_whole_batch(mirrored, teacher):
    distiller = Distiller(network(4), teacher, features=[Relational("pool")])
    with on_strategy(distiller, mirrored) as copy:
        copy.compile("sgd", "sparse_categorical_crossentropy")
        with pytest.raises(ValueError, match="2 replicas or micro-batches"):
            copy.fit(*blobs(48), verbose=0)


def other(shape=(8, 8, 2), classes=3):
    inputs = keras.Input(shape)
    return keras.Model(inputs, LAYERS.Dense(classes)(LAYERS.Flatten(name="flat")(inputs)), name="other")


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    """A model without a graph of layers."""

    def __init__(self, **options):
        super().__init__(**options)
        self.dense = LAYERS.Dense(3)

    def build(self, shape):
        self.dense.build((None, 128))
        self.built = True

    def call(self, x):
        return self.dense(keras.ops.reshape(x, (-1, 128)))


def subclassed():
    model = Subclassed(name="own")
    model.build((None, 8, 8, 2))
    return model


def test_subclassed_models_learn_and_teach():
    x, y = blobs(48)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    student = subclassed()
    before = student.get_weights()
    distiller = compiled(student, subclassed(), loss, examples=x[:8])
    distiller.fit(x, y, verbose=0)
    assert not np.array_equal(before[0], student.get_weights()[0])


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (lambda: other(classes=4), {}, r"outputs of shape \(4,\) an example, the student 'net4' \(3,\)"),
        (lambda: other((4, 4, 2)), {}, "cannot take the inputs of the student"),
        (lambda: network(6), {"features": [("conb", "conv")]}, "no layer 'conb'; did you mean conv"),
        (lambda: network(6), {"features": [("conv", "lost")]}, "the teacher 'net6' has no layer 'lost'"),
        (lambda: network(6), {"features": [("conv", "pool")]}, "no places in common"),
        (lambda: network(6), {"features": [Attention("pool")]}, "compares places"),
        (lambda: network(6), {"temperature": 0}, "temperature must be a number above 0, received 0"),
        (lambda: network(6), {"alpha": 1.5}, "alpha must be a fraction in"),
        (lambda: network(6), {"alpha": 0}, "learns nothing from the teacher"),
        (lambda: [], {}, "at least one teacher"),
        (lambda: [network(6), network(6)], {"features": [("conv", "conv")]}, "the teacher is an ensemble"),
        (lambda: keras.Sequential([LAYERS.Dense(3)]), {}, "is not built"),
        (subclassed, {"features": [("conv", "dense")]}, "subclassed model"),
    ],
)
def test_refused(make, options, words):
    with pytest.raises(ValueError, match=words):
        Distiller(network(4), make(), **options)


@pytest.mark.parametrize(("teacher", "options"), [(3, {}), (other, {}), (None, {"features": ["conv"]})])
def test_refused_types(teacher, options):
    with pytest.raises(TypeError, match="received"):
        Distiller(network(4), teacher or network(6), **options)


def test_a_loss_that_does_not_tell_is_refused_before_a_step():
    distiller = compiled(network(4), network(6), "hinge")
    before = distiller.get_weights()
    with pytest.raises(ValueError, match="does not tell"):
        distiller.fit(*blobs(48), verbose=0)
    assert all(map(np.array_equal, before, distiller.get_weights()))


def test_features_take_a_weight_above_zero():
    with pytest.raises(ValueError, match="must be above 0"):
        Hint("conv", weight=0)
