"""Teachers: ensembles, .tflite files, and outputs that were recorded."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tests.conftest import blobs, quick, small_model
from tests.test_distill_losses import sigmoid, softmax
from tfopt.distill import Distiller, Teaching, as_teacher, join, read_record, record
from tfopt.tflite.run import predict_tflite

FIT = tfopt.Fit(1e-2)


def dense(seed, units=3, activation="softmax"):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [keras.Input((8, 8, 2), name="image"), keras.layers.Flatten(), keras.layers.Dense(units, activation)], name="d"
    )


@pytest.fixture(scope="module")
def files(trained, data, tmp_path_factory):
    """The trained model as .keras, float and int8 files."""
    folder = tmp_path_factory.mktemp("teachers")
    trained.save(folder / "t.keras")
    tfopt.export_tflite(trained, folder / "float.tflite")
    tfopt.export_tflite(trained, folder / "int8.tflite", quantization="int8", calibration_data=data)
    return folder


def test_a_teacher_stays_the_same_when_a_model_inside_is_compiled():
    inner = dense(0)
    whole = keras.Sequential([keras.Input((8, 8, 2)), inner])
    before = repr(Teaching(whole))
    inner.compile("adam", "sparse_categorical_crossentropy")
    assert repr(Teaching(whole)) == before
    inner.set_weights([each + 1 for each in inner.get_weights()])
    assert repr(Teaching(whole)) != before


def test_an_ensemble_says_the_mean_of_probabilities():
    x, _ = blobs(24)
    # One of them gives logits.
    models = [dense(0), dense(1, activation=None), dense(2)]
    ensemble = as_teacher(models, x)
    found = ensemble.logits(ensemble.outputs(x)[0], ["softmax"])[0].numpy()
    outputs = [each.predict(x, verbose=0) for each in models]
    by_hand = (outputs[0] + softmax(outputs[1]) + outputs[2]) / 3
    np.testing.assert_allclose(softmax(found), by_hand, rtol=1e-4, atol=1e-6)
    assert ensemble.digest == as_teacher(models[::-1], x).digest != as_teacher(models[:2], x).digest


def test_an_ensemble_of_binary_classes_and_of_numbers():
    x, _ = blobs(24)
    models = [dense(0, 1, "sigmoid"), dense(1, 1, None)]
    ensemble = as_teacher(models, x)
    outputs = [each.predict(x, verbose=0) for each in models]
    found = ensemble.logits(ensemble.outputs(x)[0], ["sigmoid"])[0].numpy()
    np.testing.assert_allclose(sigmoid(found), (outputs[0] + sigmoid(outputs[1])) / 2, rtol=1e-4)
    found = ensemble.logits(ensemble.outputs(x)[0], ["values"])[0].numpy()
    np.testing.assert_allclose(found, (outputs[0] + outputs[1]) / 2, rtol=1e-4)


def test_ensembles_agree_on_what_they_give():
    with pytest.raises(ValueError, match="outputs of different shapes"):
        as_teacher([dense(0), dense(0, 4)], blobs(8)[0])


@pytest.mark.parametrize("name", ["float.tflite", "int8.tflite"])
def test_a_tflite_file_teaches(name, files):
    x, y = blobs(48)
    student = dense(0)
    distiller = Distiller(student, files / name, alpha=1.0)
    distiller.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    np.testing.assert_allclose(
        tf.function(distiller.teacher.outputs)(x[:7])[0][0].numpy(), predict_tflite(files / name, x[:7]), atol=1e-6
    )
    losses = distiller.fit(x, y, batch_size=20, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    with pytest.warns(UserWarning, match="doesn't support `jit_compile=True`"):
        distiller.compile("adam", "sparse_categorical_crossentropy", jit_compile=True)


def test_a_file_of_a_model_that_was_compiled_and_never_trained_teaches(tmp_path):
    model = dense(0)
    model.compile("adam", "mse")
    model.save(tmp_path / "t.keras")
    teacher = as_teacher(tmp_path / "t.keras", blobs(8)[0])
    assert (teacher.name, teacher.seen[0].shape) == ("t.keras", (3,))


def test_an_int8_teachers_zeros_are_half_a_step(files):
    seen = as_teacher(files / "int8.tflite", blobs(240)[0]).seen[0]
    assert seen.is_distribution
    assert seen.floor == pytest.approx(1 / 512)


def test_outputs_are_recorded_once(trained, data, files, tmp_path):
    x, _ = blobs(8)
    teacher = as_teacher(trained, x)
    first = record(teacher, data, tmp_path)
    written = first.path.stat().st_mtime_ns
    batches = [batch[0].numpy() for batch in data.batches("train")]
    np.testing.assert_allclose(first.outputs[0], trained.predict(np.concatenate(batches), verbose=0), atol=1e-6)
    again = record(as_teacher(files / "t.keras", x), data, tmp_path)
    assert again.path == first.path
    assert again.path.stat().st_mtime_ns == written
    np.testing.assert_array_equal(again.outputs[0], first.outputs[0])
    # Another teacher, other data, another split: other files.
    images, labels = blobs(240, seed=1)
    others = [
        record(as_teacher(small_model(), x), data, tmp_path),
        record(teacher, tfopt.from_arrays((images, labels), batch_size=24, name="blobs"), tmp_path),
        record(teacher, data, tmp_path, "validation"),
    ]
    assert len({first.path, *(each.path for each in others)}) == 4
    # The size of batches and the order of epochs are none of its concern.
    assert record(teacher, dataclasses.replace(data, batch_size=10, seed=5), tmp_path).path == first.path


def test_a_split_has_its_own_outputs_even_where_its_examples_are_the_same(trained, tmp_path):
    arrays = blobs(48)
    data = tfopt.from_arrays(arrays, arrays, arrays, batch_size=24)
    teacher = as_teacher(trained, arrays[0])
    known = {split: record(teacher, data, tmp_path, split) for split in ("train", "validation")}
    assert known["train"].path != known["validation"].path
    join(data, known["train"])
    with pytest.raises(ValueError, match="'split': 'validation'"):
        join(data, known["validation"])


def test_validation_outputs_never_come_into_training(trained, data, tmp_path):
    known = record(as_teacher(trained, blobs(8)[0]), data, tmp_path)
    joined = join(data, known)
    assert len(known.outputs[0]) == data.sizes["train"]
    for split in ("validation", "test"):
        for ours, theirs in zip(joined.batches(split), data.batches(split), strict=True):
            np.testing.assert_array_equal(ours[0], theirs[0])
    held_out = np.concatenate([batch[0].numpy() for batch in data.batches("validation")])
    for inputs, _ in joined.training_batches(0):
        assert not any((each == held_out).all((1, 2, 3)).any() for each in inputs.inputs.numpy())


@pytest.mark.parametrize("epoch", [0, 3])
def test_outputs_stay_with_their_examples(epoch, trained, data, tmp_path):
    # Read and transformed: elements are numbers of rows.
    images, labels = blobs()
    table, numbers = tf.constant(images), np.arange(240)

    def read(number):
        return table[number], tf.gather(labels, number)

    splits = {
        name: tf.data.Dataset.from_tensor_slices((part,))
        for name, part in (("train", numbers[:200]), ("validation", numbers[200:220]), ("test", numbers[220:]))
    }
    rows = tfopt.Data(splits, batch_size=24, read=read, transform=lambda x, y: (2 * x, y))
    for each in (data, rows):
        joined = join(each, record(as_teacher(trained, images[:8]), each, tmp_path))
        seen = 0
        for (mine, y), (x, labels_too) in zip(
            joined.training_batches(epoch), each.training_batches(epoch), strict=True
        ):
            np.testing.assert_array_equal(mine.inputs, x)
            np.testing.assert_array_equal(y, labels_too)
            np.testing.assert_allclose(mine.outputs[0], trained(x, training=False), atol=1e-5)
            seen += len(x)
        assert seen == each.sizes["train"]


def test_augmented_data_and_other_data_are_refused(trained, data, tmp_path):
    known = record(as_teacher(trained, blobs(8)[0]), data, tmp_path)
    with pytest.raises(ValueError, match="augmented anew in each epoch"):
        join(dataclasses.replace(data, augment=(tfopt.augment.Flip(),)), known)
    with pytest.raises(ValueError, match="outputs go with the examples"):
        join(tfopt.from_arrays(blobs(240, seed=1), batch_size=24), known)


def test_a_damaged_record_is_refused(trained, data, tmp_path):
    known = record(as_teacher(trained, blobs(8)[0]), data, tmp_path)
    content = known.path.read_bytes()
    known.path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="is damaged, or no record of outputs"):
        record(as_teacher(trained, blobs(8)[0]), data, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"tfopt\.distill\.record writes"):
        read_record(tmp_path / "none.npz")


def distilled(folder, data, **options):
    student = dense(5)
    return tfopt.run([tfopt.Distill(epochs=2, fit=FIT, **options)], tfopt.Work(student, data, folder))


@pytest.fixture(scope="module")
def live(files, data, tmp_path_factory):
    return distilled(tmp_path_factory.mktemp("live"), data, teacher=files / "t.keras")


@pytest.mark.parametrize("kind", quick(["cached", "recorded", "ensemble"], "cached"))
def test_a_recorded_teacher_teaches_what_a_live_one_does(kind, live, files, data, tmp_path):
    teacher, cache = files / "t.keras", tmp_path / "cache"
    if kind == "recorded":
        teacher, cache = record(as_teacher(teacher, blobs(8)[0]), data, tmp_path).path, None
    found = distilled(tmp_path / "run", data, teacher=[teacher] if kind == "ensemble" else teacher, cache=cache)
    for ours, theirs in zip(found.model.get_weights(), live.model.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
    said = {"cached": "the teacher 1.0000", "recorded": "as recorded: accuracy 1.0000 on the training split"}
    assert said.get(kind, "1 teachers: t.keras") in found.report.stages[0].notes[0]
    assert kind == "recorded" or len(list(cache.iterdir())) == 1


def test_a_tflite_file_teaches_in_a_chain_and_compiled_where_it_is_cached(files, data, tmp_path):
    fit = tfopt.Fit(1e-2, distill=Teaching(files / "float.tflite", cache=tmp_path / "cache"), jit_compile=True)
    work = tfopt.run([tfopt.Train(1, fit)], tfopt.Work(small_model(), data, tmp_path / "run"))
    assert (
        work.report.stages[0].notes[0].startswith("learnt from float.tflite; accuracy on the test split: the teacher 1")
    )
    fit = tfopt.Fit(distill=Teaching(files / "float.tflite"), jit_compile=True)
    with pytest.raises(ValueError, match="jit_compile=True cannot compile the teacher 'float.tflite'"):
        tfopt.validate([tfopt.Train(1, fit)], tfopt.Work(small_model(), data, tmp_path / "run2"))
