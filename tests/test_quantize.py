"""Quantization-aware training: what users do with it, what it refuses, and what it keeps."""

import logging

import keras
import numpy as np
import pytest

import tfopt
from tests.conftest import blobs, small_model
from tfopt.measure.file import weight_tensors
from tfopt.quantize.frozen import frozen
from tfopt.tflite.flatbuffer import read_tflite
from tfopt.tflite.parity import require_parity

FIT = tfopt.Fit(learning_rate=3e-3)
SIZES = {"conv": 144, "hidden": 1536, "out": 36}


def fitted(model, epochs=1):
    model.compile(
        keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False
    )
    x, y = blobs(96)
    model.fit(x, y, batch_size=24, epochs=epochs, verbose=0, shuffle=False)
    return model


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(0)
    return fitted(small_model(), 3)


@pytest.fixture(scope="module")
def aware(trained):
    return fitted(tfopt.quantize_aware(trained), 2)


def integers(path):
    return {weight.name: weight.values for weight in weight_tensors(read_tflite(path))}


def test_it_is_an_ordinary_model_that_exports_without_data(trained, aware, tmp_path):
    assert isinstance(aware, keras.Model)
    assert [each.name for each in aware.inputs] == ["image"]
    assert aware.output_names == trained.output_names == ["out"]
    x, y = blobs(200, seed=1)
    assert aware.evaluate(x, y, verbose=0)[1] > 0.9
    measured = tfopt.export_tflite(aware, tmp_path / "m.tflite")
    assert measured.float_ops == []
    file = read_tflite(tmp_path / "m.tflite")
    assert {tensor.dtype for tensor in (*file.inputs.values(), *file.outputs.values())} == {"int8"}
    assert list(file.inputs) == ["image"]
    assert list(file.outputs) == ["out"]
    found = tfopt.verify_tflite(aware, tmp_path / "m.tflite", (x, y), use_xnnpack=False)
    require_parity(found)
    assert found.mean_lsb < 0.2
    assert found.argmax_agreement == 1.0


def test_it_survives_saving(aware, tmp_path):
    aware.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    x, _ = blobs(40)
    assert np.array_equal(again.predict(x, verbose=0), aware.predict(x, verbose=0))
    tfopt.export_tflite(aware, tmp_path / "one.tflite")
    tfopt.export_tflite(again, tmp_path / "two.tflite")
    one, two = integers(tmp_path / "one.tflite"), integers(tmp_path / "two.tflite")
    assert all(np.array_equal(a, b) for a, b in zip(one.values(), two.values(), strict=True))
    # It goes on training where it was.
    fitted(again)


def test_the_float_model_stays_as_it_is(trained):
    before = [weight.copy() for weight in trained.get_weights()]
    fitted(tfopt.quantize_aware(trained))
    assert all(np.array_equal(a, b) for a, b in zip(before, trained.get_weights(), strict=True))


def test_weights_of_a_diverged_training_are_refused(trained, tmp_path):
    aware = tfopt.quantize_aware(trained)
    tfopt.calibrate(aware, blobs(48)[0])
    for wrong in (np.nan, 1e35):
        kernel = aware.get_layer("conv").layer.kernel
        kernel.assign(np.full(kernel.shape, wrong, "float32"))
        with pytest.raises(ValueError, match="weights of 'conv' reach .* training has diverged"):
            tfopt.export_tflite(aware, tmp_path / "m.tflite")


def subclassed():
    class Net(keras.Model):
        def __init__(self):
            super().__init__(name="net")
            self.dense = keras.layers.Dense(2)

        def call(self, inputs):
            return self.dense(inputs)

    model = Net()
    model(np.ones((1, 4), "float32"))
    return model


def around(layer, shape=(4,)):
    return keras.Sequential([keras.Input(shape), layer], name="net")


REFUSED = {
    "unbuilt": (lambda: keras.Sequential([keras.layers.Dense(2)], name="net"), {}, "'net' is not built.*keras.Input"),
    "subclassed": (subclassed, {}, "'net' is a subclassed model .Net.*functional API"),
    "nested subclassed": (lambda: around(subclassed()), {}, "'net' is a subclassed model"),
    "no rule": (
        lambda: around(keras.layers.Lambda(lambda x: x * 2, name="twice")),
        {},
        "1 operations .* cannot be quantized: 'twice': .*Lambda.*on_unsupported=\"float\"",
    ),
    "channels first": (
        lambda: around(keras.layers.MaxPooling2D(data_format="channels_first"), (2, 4, 4)),
        {},
        "channels_first",
    ),
    "weight bits": (small_model, {"weight_bits": 9}, "weight_bits must be from 2 to 8, received 9"),
    "weight bits true": (small_model, {"weight_bits": True}, "weight_bits must be from 2 to 8, received True"),
    "activation bits": (small_model, {"activation_bits": 4}, "activation_bits must be 8 or 16, received 4"),
    "bits of a layer": (
        small_model,
        {"layers": {"conv": 1}},
        "number of bits for 'conv' must be from 2 to 8, received 1",
    ),
    "bits from a function": (small_model, {"layers": lambda layer: 4.5}, "must be from 2 to 8, received 4.5"),
    "empty list": (small_model, {"layers": []}, "layers selects none"),
    "empty dict": (small_model, {"layers": {}}, "empty dict"),
    "predicate": (small_model, {"layers": lambda layer: False}, "layers selects none"),
    "misspelt": (small_model, {"layers": {"hiden": 4}}, "no layer 'hiden'; did you mean 'hidden'"),
    "no weights": (small_model, {"layers": {"pool": 4}}, "layers names 'pool', which has no weights"),
    "twice": (lambda: tfopt.quantize_aware(small_model()), {}, "quantization-aware already"),
    "on_unsupported": (small_model, {"on_unsupported": "skip"}, 'must be "raise" or "float", received \'skip\''),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    build, options, words = REFUSED[case]
    model = build()
    with pytest.raises(ValueError, match=words):
        tfopt.quantize_aware(model, **options)


def test_refused_kinds():
    with pytest.raises(TypeError, match=r"expected a Keras 3 model, received builtins.str.*tfopt.load_model"):
        tfopt.quantize_aware("model.keras")
    quantized = small_model()
    quantized.get_layer("hidden").quantize("int8")
    with pytest.raises(ValueError, match="Keras has quantized the layers .*hidden.*before model.quantize"):
        tfopt.quantize_aware(quantized)


def test_export_needs_ranges(trained, tmp_path):
    model = tfopt.quantize_aware(trained)
    with pytest.raises(ValueError, match=r"range of 'image_quantize' is not known yet: train .* tfopt.calibrate"):
        tfopt.export_tflite(model, tmp_path / "m.tflite")
    assert not (tmp_path / "m.tflite").exists()
    # Until then it predicts as the float model does, but for its weights.
    x, _ = blobs(40)
    assert np.abs(model.predict(x, verbose=0) - trained.predict(x, verbose=0)).max() < 0.1


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_export_refuses_ranges_that_are_no_numbers(wrong, trained, tmp_path):
    model = tfopt.quantize_aware(trained)
    x, y = blobs(48)
    with pytest.raises(ValueError, match="data holds 1 NaN or infinite value"):
        tfopt.calibrate(model, np.where(np.arange(48 * 128).reshape(x.shape) == 7, wrong, x))
    # Nothing in Keras' own fit looks at the data.
    x[3, 2, 1, 0] = wrong
    fitted_with(model, keras.callbacks.Callback(), x, y)
    with pytest.raises(ValueError, match="range of 'image_quantize' is .*(nan|inf).*lower learning rate"):
        tfopt.export_tflite(model, tmp_path / "m.tflite")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quantization": "float16"}, "exported with the integers it was trained for.*received 'float16'"),
        ({"calibration_data": np.ones((4, 8, 8, 2))}, "knows its ranges from training"),
    ],
)
def test_export_refuses_other_quantization(options, words, aware, tmp_path):
    with pytest.raises(ValueError, match=words):
        tfopt.export_tflite(aware, tmp_path / "m.tflite", **options)


def test_calibrate_refuses_a_float_model(trained):
    with pytest.raises(ValueError, match="'small' is not quantization-aware: call quantize_aware"):
        tfopt.calibrate(trained, blobs()[0])


@pytest.mark.parametrize("policy", ["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.slow)])
def test_mixed_precision_becomes_float32_and_says_so(policy, caplog, tmp_path):
    keras.config.set_dtype_policy(policy)
    try:
        mixed = small_model()
        with caplog.at_level(logging.WARNING):
            model = tfopt.quantize_aware(mixed)
        assert "its quantization-aware copy computes in float32" in caplog.text
        fitted(model)
    finally:
        keras.config.set_dtype_policy("float32")
    assert {layer.compute_dtype for layer in model._flatten_layers() if layer.weights} == {"float32"}
    tfopt.export_tflite(model, tmp_path / "m.tflite")
    found = tfopt.verify_tflite(model, tmp_path / "m.tflite", blobs(100, seed=1), use_xnnpack=False)
    require_parity(found)


@pytest.mark.slow
def test_strategies_train_alike(mirrored, trained, tmp_path):
    with mirrored.scope():
        model = tfopt.quantize_aware(trained)
        fitted(model, 2)
    alone = fitted(tfopt.quantize_aware(trained), 2)
    x, _ = blobs(100, seed=1)
    # Ranges and statistics are means over the replicas' halves of a batch.
    assert np.mean(model.predict(x, verbose=0).argmax(1) == alone.predict(x, verbose=0).argmax(1)) > 0.95
    for ours, theirs in zip(model.weights, alone.weights, strict=True):
        assert ours.path == theirs.path
    tfopt.export_tflite(model, tmp_path / "m.tflite")
    require_parity(tfopt.verify_tflite(model, tmp_path / "m.tflite", blobs(100, seed=1), use_xnnpack=False))


def ranges(model):
    return {variable.path: float(variable.numpy()) for variable in model.variables if variable.name in ("low", "high")}


@pytest.mark.parametrize("steps_per_execution", [1, 2])
def test_ranges_freeze(steps_per_execution, trained):
    x, y = blobs(96)
    model = tfopt.quantize_aware(trained)
    model.compile("adam", "sparse_categorical_crossentropy", steps_per_execution=steps_per_execution, jit_compile=False)
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(
            (ranges(model), model.get_layer("conv").batch_norm.moving_mean.numpy(), model.get_layer("out").name)
        )
    )
    model.fit(x, y, batch_size=24, epochs=2, verbose=0, callbacks=[tfopt.FreezeRanges(4), watch])
    half = len(seen) // 2
    assert seen[0][0] != seen[half - 1][0]
    assert all(each[0] == seen[half - 1][0] for each in seen[half:])
    assert all(np.array_equal(each[1], seen[half - 1][1]) for each in seen[half:])
    # A later training watches again.
    before = ranges(model)
    model.fit(x * 3, y, batch_size=24, verbose=0)
    assert ranges(model) != before


def test_freeze_checks_the_plan(trained, aware):
    x, y = blobs(48)
    with pytest.raises(ValueError, match="ranges are to stay from step 100 on, but training ends after step"):
        fitted_with(tfopt.quantize_aware(trained), tfopt.FreezeRanges(100), x, y)
    with pytest.raises(ValueError, match="not quantization-aware"):
        fitted_with(keras.models.clone_model(trained), tfopt.FreezeRanges(0), x, y)


def fitted_with(model, callback, x, y):
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(x, y, batch_size=24, verbose=0, callbacks=[callback])


@pytest.mark.slow
def test_zeros_and_clusters_reach_the_files_integers(data, tmp_path):
    work = tfopt.run([tfopt.Train(1, FIT)], tfopt.Work(small_model(), data, tmp_path))
    model = keras.models.clone_model(work.model)
    rng = np.random.default_rng(0)
    zeros, clusters = {}, {}
    for name in SIZES:
        kernel = work.model.get_layer(name).kernel.numpy()
        values = np.linspace(-1, 1, 8) * np.abs(kernel).max()
        kernel = values[np.abs(kernel[..., None] - values).argmin(-1)]
        kernel[rng.random(kernel.shape) < 0.5] = 0
        model.get_layer(name).kernel.assign(kernel)
        path = model.get_layer(name).kernel.path
        zeros[path], clusters[path] = float((kernel == 0).mean()), len(np.unique(kernel))
    start = tfopt.Work(model, data, tmp_path / "more", (tfopt.Sparsity(zeros), tfopt.Clustered(clusters)))
    after = tfopt.run([tfopt.QuantizeAware(2, fit=FIT), tfopt.ExportTFLite(max_drop=1.0)], start)
    stored = {values.size: values for values in integers(after.report.artefacts["tflite"]["path"]).values()}
    for name, size in SIZES.items():
        before, path = model.get_layer(name).kernel.numpy(), model.get_layer(name).kernel.path
        trained = after.model.get_layer("out_quantized" if name == "out" else name).layer.kernel.numpy()
        assert not np.allclose(before, trained)
        assert ((trained == 0) == (before == 0)).all()
        assert len(np.unique(trained)) == clusters[path]
        assert (stored[size] == 0).mean() >= zeros[path]
        assert len(np.unique(np.abs(stored[size]))) <= clusters[path]
    assert len(after.report.stages[0].invariants) == 2


def test_clusters_of_a_dense_layer_survive_the_gain_behind_it(tmp_path):
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((16,), name="x"), layers.Dense(12, name="few"), layers.BatchNormalization(), layers.ReLU()]
    )
    rng = np.random.default_rng(0)
    kernel = model.get_layer("few").kernel
    kernel.assign(rng.choice([-0.5, 0.0, 0.25, 0.4], kernel.shape))
    model.layers[1].gamma.assign(rng.uniform(0.2, 3.0, 12))
    aware = tfopt.quantize_aware(model)
    tfopt.calibrate(aware, rng.normal(0, 1, (64, 16)).astype("float32"))
    tfopt.export_tflite(aware, tmp_path / "m.tflite")
    stored = {values.size: values for values in integers(tmp_path / "m.tflite").values()}
    assert len(np.unique(stored[16 * 12])) == 4


def test_frozen_computes_what_the_model_computes(aware):
    x, _ = blobs(40)
    plain = aware(x).numpy()
    with frozen(aware):
        constant = aware(x).numpy()
    # The same integers and ranges; folding the BatchNormalization moves the last bits of floats.
    assert np.abs(plain - constant).max() <= 1 / 256
    assert np.mean(plain != constant) < 0.05
    assert np.array_equal(aware(x).numpy(), plain)


def test_step_keeps_its_trace(trained):
    model = tfopt.quantize_aware(trained)
    model.compile("adam", "sparse_categorical_crossentropy")
    x, y = blobs(96)
    model.fit(x, y, batch_size=24, verbose=0)
    traced = []
    layer = model.get_layer("conv")
    plain = layer.call
    object.__setattr__(layer, "call", lambda *args, **kwargs: traced.append(1) or plain(*args, **kwargs))
    model.fit(x, y, batch_size=24, epochs=3, verbose=0)
    assert not traced
