"""The parity gate and the kernels' own noise, on a fake-quantized model made by hand."""

import dataclasses
import functools
import gc

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfopt.tflite.export import export_tflite
from tfopt.tflite.parity import require_parity
from tfopt.tflite.quiet import quiet
from tfopt.tflite.run import predict_tflite
from tfopt.tflite.verify import verify_tflite

LAYERS = ["first", "second", "third", "logits"]


@pytest.fixture(scope="module", autouse=True)
def _frozen_garbage():
    gc.freeze()
    yield
    gc.unfreeze()


class Grid(layers.Layer):
    """Rounds to 256 steps of a size, the first one `lowest` steps from 0."""

    def __init__(self, step, lowest=-128, **kwargs):
        super().__init__(**kwargs)
        self.step, self.lowest = step, lowest

    def call(self, x):
        low, high = self.step * self.lowest, self.step * (self.lowest + 255)
        return tf.quantization.fake_quant_with_min_max_vars(x, low, high)


class Affine(layers.Layer):
    """A convolution, a depthwise one or a dense layer with rounded constants; the bias is on its grid, too."""

    def __init__(self, shape, input_step, bits=8, scale=1.0, shift=0.0, **kwargs):
        super().__init__(**kwargs)
        generator = np.random.default_rng(len(kwargs["name"]))
        self.kernel = (scale * generator.normal(0, np.prod(shape[:-1]) ** -0.5, shape)).astype("float32")
        axes = None if len(shape) == 2 else (0, 1, 2)
        self.ends = np.abs(self.kernel).max(axes).astype("float32")
        self.limit = 2 ** (bits - 1) - 1
        self.bits = bits
        step = input_step * self.ends / self.limit
        self.bias = (np.round((generator.normal(0, 0.3, shape[-1]) + shift) / step) * step).astype("float32")

    def call(self, x):
        options = {"num_bits": self.bits, "narrow_range": True}
        if self.kernel.ndim == 2:
            kernel = tf.quantization.fake_quant_with_min_max_vars(self.kernel, -self.ends, self.ends, **options)
            return tf.matmul(x, kernel) + self.bias
        kernel = tf.quantization.fake_quant_with_min_max_vars_per_channel(self.kernel, -self.ends, self.ends, **options)
        if self.kernel.shape[2] > 1:
            return tf.nn.conv2d(x, kernel, 1, "SAME") + self.bias
        kernel = tf.reshape(kernel, (*self.kernel.shape[:2], -1, 1))
        return tf.nn.depthwise_conv2d(x, kernel, (1, 1, 1, 1), "SAME") + self.bias


def aware(bits=8, steps=(), **broken):
    """A residual network that computes as its integer file does; `broken` layers have another kernel or bias."""
    step = {"image": 0.03, "first": 0.015, "second": 0.02, "third": 0.02, "sum": 0.02, "logits": 0.01, **dict(steps)}

    def affine(name, shape, source):
        return Affine(shape, step[source], bits, **broken.get(name, {}), name=name)

    def rounded(x, name, lowest=-128):
        return Grid(step[name], lowest, name=f"{name}_grid")(x)

    inputs = keras.Input((6, 6, 3), name="image")
    x = rounded(inputs, "image")
    x = rounded(layers.ReLU(name="first_relu")(affine("first", (3, 3, 3, 8), "image")(x)), "first", 0)
    y = rounded(layers.ReLU(name="second_relu")(affine("second", (3, 3, 1, 8), "first")(x)), "second", 0)
    y = rounded(affine("third", (1, 1, 8, 8), "second")(y), "third")
    x = rounded(layers.Add(name="sum")([x, y]), "sum")
    x = Grid(step["sum"], name="flat_grid")(layers.Flatten(name="flat")(x))
    return keras.Model(inputs, rounded(affine("logits", (288, 10), "sum")(x), "logits"), name="aware")


def images(count=400, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 6, 6, 3)).astype("float32")


@pytest.fixture(scope="module")
def save(tmp_path_factory):
    """Converts a fake-quantized model of one input as it is, without calibration."""
    folder = tmp_path_factory.mktemp("aware")

    def write(model, name="model", float_io=False):
        module = tf.Module()
        source, target = model.inputs[0].name, model.output_names[0]
        signature = tf.TensorSpec((1, *model.inputs[0].shape[1:]), name=source)
        module.serve = tf.function(
            lambda x: {target: model(x, training=False)}, input_signature=[signature], autograph=False
        )
        with quiet():
            tf.saved_model.save(module, str(folder / name), signatures={"serving_default": module.serve})
            converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / name))
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            if not float_io:
                converter.inference_input_type = converter.inference_output_type = tf.int8
            content = converter.convert()
        path = folder / f"{name}.tflite"
        path.write_bytes(content)
        return path

    return write


@pytest.fixture(scope="module")
def export(save):
    """The file of the model without a fault."""
    return functools.cache(lambda bits=8, float_io=False: save(aware(bits), f"{bits}_{float_io}", float_io))


@pytest.mark.parametrize("float_io", [False, True])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_sound_file_passes(export, bits, float_io):
    result = verify_tflite(aware(bits), export(bits, float_io), images())
    require_parity(result)
    assert result.noise.mean_lsb > 0.05
    assert result.noise.model_mean_lsb <= 1.2 * result.noise.mean_lsb
    assert all(layer.lsb < 0.3 for layer in result.layers)


def test_the_noise_is_that_of_a_hand_calculation(export):
    x = images(60, seed=1)
    noise = verify_tflite(aware(), export(), x, noise_examples=50).noise
    fast, plain = (predict_tflite(export(), x[:50], use_xnnpack=use) for use in (True, False))
    model = np.asarray(aware()(x[:50]))
    steps = np.abs(fast - plain) / 0.01
    assert noise.examples == 50
    assert noise.mean_lsb == pytest.approx(steps.mean(), rel=1e-4)
    assert noise.max_lsb == pytest.approx(steps.max(), rel=1e-4)
    assert noise.max_abs_error == pytest.approx(np.abs(fast - plain).max())
    assert noise.argmax_agreement == np.mean(fast.argmax(1) == plain.argmax(1))
    assert noise.model_mean_lsb == pytest.approx(np.abs(fast - model).mean() / 0.01, rel=1e-4)
    assert noise.model_argmax_agreement == np.mean(fast.argmax(1) == model.argmax(1))


def test_outputs_converted_to_float_have_the_steps_of_their_integers(export):
    x = images(30, seed=2)
    integers, floats = (verify_tflite(aware(), export(float_io=each), x) for each in (False, True))
    assert floats.mean_lsb == integers.mean_lsb
    assert floats.max_lsb == integers.max_lsb
    assert floats.noise == integers.noise
    assert {layer.name: layer.lsb for layer in integers.layers}.items() <= {
        layer.name: layer.lsb for layer in floats.layers
    }.items()


# The small shift of "third" is 0.2 of its values, but less of the sum behind it.
BROKEN = [(8, {"shift": 0.3}), (8, {"shift": 0.15}), (8, {"scale": 1.15}), (4, {"shift": 0.3})]


@pytest.mark.parametrize(
    ("name", "bits", "broken"),
    [
        # Each layer and each fault once; the small shift where it is hardest to see.
        pytest.param(name, *how, marks=[pytest.mark.slow] * (how != BROKEN[0] and name != "third"))
        for name in LAYERS
        for how in BROKEN
    ],
)
def test_a_broken_layer_is_named(export, bits, name, broken):
    result = verify_tflite(aware(bits, **{name: broken}), export(bits), images())
    with pytest.raises(RuntimeError, match="first layer that diverges is '(.*?) steps from") as caught:
        require_parity(result)
    told = str(caught.value).split("diverges is")[1]
    assert f"'{name}" in told
    others = [layer for layer in result.layers if name not in [layer.name.split("_")[0], *layer.fused]]
    assert len(others) >= 3
    # What they inherit does not count.
    assert all(layer.lsb < 0.5 for layer in others)


class Attention(layers.Layer):
    """Ends in a quantizer, without its own name in the file; what another one gave is there in two orders."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.mix, self.inner_grid, self.outer_grid = Affine((8, 8), 0.02, name="mix"), Grid(0.03), Grid(0.05)

    def call(self, x):
        y = self.inner_grid(self.mix(tf.reshape(x, (-1, 8))))
        heads = tf.transpose(tf.reshape(y, (-1, 6, 2, 4)), (0, 2, 1, 3))
        return self.outer_grid(tf.matmul(heads, heads, transpose_b=True))


def test_inside_of_a_layer_quantizers_are_found_by_what_they_gave(save):
    inputs = keras.Input((6, 8), name="tokens")
    y = Attention(name="attention")(Grid(0.02, name="grid")(inputs))
    y = layers.Flatten()(Grid(0.07, name="sum_grid")(layers.Add()([y, y])))
    y = Grid(0.05, name="logits_grid")(Affine((72, 4), 0.07, name="logits")(Grid(0.07)(y)))
    model = keras.Model(inputs, y, name="attentive")
    x = np.random.default_rng(0).normal(size=(20, 6, 8)).astype("float32")
    path = save(model)
    result = verify_tflite(model, path, x)
    require_parity(result)
    assert [layer.name.split("/")[0] for layer in result.layers] == [
        "attention",
        "attention",
        "sum_grid",
        "logits_grid",
    ]
    assert all(layer.lsb < 0.3 for layer in result.layers)
    model.get_layer("attention").mix.bias += 0.5
    with pytest.raises(RuntimeError, match="first layer that diverges is 'attention/mix'"):
        require_parity(verify_tflite(model, path, x))


@pytest.mark.parametrize("name", ["image", "first", "second", "third", "sum", "logits"])
def test_a_changed_range_is_named(export, name):
    step = {"image": 0.03, "first": 0.015, "second": 0.02, "third": 0.02, "sum": 0.02, "logits": 0.01}[name]
    result = verify_tflite(aware(steps={name: step * 0.5}), export(), images())
    expected = "first" if name == "image" else name
    # A finer step that clips nothing is less than one step off.
    told = "furthest off" if name == "second" else "The first layer that diverges"
    with pytest.raises(RuntimeError, match=f"{told} is '{expected}_grid'"):
        require_parity(result)


def test_the_error_has_the_figures_and_a_way_out(export):
    result = verify_tflite(aware(third={"shift": 0.3}), export(), images())
    with pytest.raises(RuntimeError) as caught:
        require_parity(result)
    message, noise = str(caught.value), result.noise
    assert f"{noise.model_mean_lsb:.3g} steps off" in message
    assert f"kernels differ by {noise.mean_lsb:.3g}" in message
    assert f"as the model does on {noise.model_argmax_agreement:.2%}" in message
    assert f"kernels agree on {noise.argmax_agreement:.2%}" in message
    assert "400 examples" in message
    assert "Export the file again" in message


@pytest.fixture(scope="module")
def sound(export):
    return verify_tflite(aware(), export(), images(8))


def with_noise(verification, **changes):
    return dataclasses.replace(verification, noise=dataclasses.replace(verification.noise, **changes))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"mean_lsb": 0.0, "model_mean_lsb": 0.5}, None),
        ({"mean_lsb": 0.0, "model_mean_lsb": 0.51}, "0.51 steps off in the mean, where .* differ by 0 and 0.5 are"),
        ({"mean_lsb": 0.3, "model_mean_lsb": 0.86}, None),
        ({"mean_lsb": 0.3, "model_mean_lsb": 0.87}, "0.87 steps off in the mean"),
        ({"mean_lsb": None, "model_mean_lsb": None}, None),
        ({"examples": 1000, "argmax_agreement": 0.997, "model_argmax_agreement": 0.985}, None),
        ({"examples": 1000, "argmax_agreement": 0.997, "model_argmax_agreement": 0.980}, "on 98.00%, where"),
        ({"examples": 100_000, "argmax_agreement": 0.997, "model_argmax_agreement": 0.995}, "on 99.50%, where"),
        ({"examples": 1000, "argmax_agreement": 1.0, "model_argmax_agreement": 0.992}, None),
        ({"examples": 1000, "argmax_agreement": 1.0, "model_argmax_agreement": 0.990}, "on 99.00%, where"),
        # Two wrong decisions of three may be ties.
        ({"examples": 3, "argmax_agreement": 1.0, "model_argmax_agreement": 1 / 3}, None),
        ({"argmax_agreement": None, "model_argmax_agreement": None}, None),
    ],
)
def test_what_is_allowed(sound, changes, fault):
    verification = with_noise(sound, **changes)
    if fault is None:
        require_parity(verification)
    else:
        with pytest.raises(RuntimeError, match=fault):
            require_parity(verification)


def test_small_errors_that_add_up_are_told_from_a_broken_layer(sound):
    furthest = max(sound.layers, key=lambda layer: layer.lsb)
    with pytest.raises(RuntimeError, match=f"No layer alone diverges; furthest off is '{furthest.name}'"):
        require_parity(with_noise(sound, mean_lsb=0.0, model_mean_lsb=1.0))


def test_float_outputs_without_decisions_cannot_be_judged(sound):
    nothing = dict.fromkeys(["mean_lsb", "model_mean_lsb", "argmax_agreement", "model_argmax_agreement"])
    with pytest.raises(ValueError, match="neither steps nor decisions to compare: quantize the last layer too"):
        require_parity(with_noise(sound, **nothing))


def test_a_float_file_has_no_steps(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((20,), name="x"), layers.Dense(30, "relu"), layers.Dense(3, name="y")])
    export_tflite(model, tmp_path / "m.tflite")
    result = verify_tflite(model, tmp_path / "m.tflite", np.random.default_rng(0).normal(size=(40, 20)))
    assert (result.noise.max_lsb, result.noise.mean_lsb, result.noise.model_mean_lsb) == (None, None, None)
    assert 0 <= result.noise.max_abs_error < 1e-5
    assert result.noise.argmax_agreement == 1.0
    assert [layer.lsb for layer in result.layers] == [None, None]
    require_parity(result)


def test_the_noise_needs_an_example(export):
    with pytest.raises(ValueError, match="noise_examples must be at least 1, received 0"):
        verify_tflite(aware(), export(), images(2), noise_examples=0)
