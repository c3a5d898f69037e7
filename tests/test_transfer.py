"""A trained network with a new head: what is taken over, and what learns."""

import keras
import numpy as np
import pytest

import tfopt
from tests.conftest import small_model

layers = keras.layers


def changed(before, after):
    """The layers with other weights."""
    pairs = zip(before.layers, after.layers, strict=True)
    return [
        one.name
        for one, other in pairs
        if not all(np.array_equal(a, b) for a, b in zip(one.get_weights(), other.get_weights(), strict=True))
    ]


@pytest.mark.parametrize("precision", ["float32", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)])
def test_the_layers_named_learn_alone(precision, data, tmp_path):
    start = small_model()
    stage = tfopt.Train(2, tfopt.Fit(5e-3, precision=precision), layers=["hidden", "out"])
    work = stage(tfopt.Work(start, data, tmp_path))
    # The statistics of the normalization too are as they were.
    assert changed(start, work.model) == ["hidden", "out"]
    assert work.report.stages[-1].changed == ["hidden", "out"]
    assert all(layer.trainable for layer in work.model.layers)
    again = tfopt.Train(1, tfopt.Fit(5e-3))(work)
    assert changed(work.model, again.model) == ["conv", "bn", "hidden", "out"]


def test_statistics_move_where_nothing_else_of_a_normalization_learns(data, tmp_path):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.BatchNormalization(center=False, scale=False, momentum=0.5, name="norm"),
            layers.Flatten(),
            layers.Dense(3, activation="softmax", name="out"),
        ]
    )
    for number, named in enumerate((None, ["norm", "out"])):
        work = tfopt.Train(1, layers=named)(tfopt.Work(model, data, tmp_path / str(number)))
        assert changed(model, work.model) == ["norm", "out"]
    assert changed(model, tfopt.Train(1, layers=["out"])(tfopt.Work(model, data, tmp_path / "head")).model) == ["out"]


class Residual(layers.Layer):
    """Weights of its own beside a layer inside."""

    def build(self, shape):
        self.gain = self.add_weight(shape=shape[-1:], initializer="ones", name="gain")
        self.inner = layers.Dense(shape[-1], name="inner")
        self.inner.build(shape)

    def call(self, inputs):
        return self.gain * inputs + self.inner(inputs)


@pytest.mark.slow
def test_weights_beside_a_layer_inside_are_frozen_with_it(data, tmp_path):
    with keras.saving.custom_object_scope({"Residual": Residual}):
        stack = [keras.Input((8, 8, 2)), Residual(name="residual"), layers.Flatten(), layers.Dense(3, name="out")]
        model = keras.Sequential([*stack, layers.Softmax()])
        for named, expected in ((["out"], ["out"]), (["residual"], ["residual"]), (None, ["residual", "out"])):
            work = tfopt.Train(1, layers=named)(tfopt.Work(model, data, tmp_path / str(named)))
            assert changed(model, work.model) == expected
            assert all(variable.trainable for variable in work.model.get_layer("residual").weights)
        inner = tfopt.Train(1, layers=["inner"])(tfopt.Work(model, data, tmp_path / "inner")).model
        assert np.array_equal(inner.get_layer("residual").gain, model.get_layer("residual").gain)
        assert not np.array_equal(inner.get_layer("residual").inner.kernel, model.get_layer("residual").inner.kernel)


def test_a_frozen_layer_stays_frozen_in_later_stages(data, tmp_path):
    start = small_model()
    start.get_layer("conv").trainable = False
    work = tfopt.Train(1, layers=["out"])(tfopt.Work(start, data, tmp_path))
    assert not work.model.get_layer("conv").trainable
    assert changed(work.model, tfopt.Train(1)(work).model) == ["bn", "hidden", "out"]


def test_a_selection_that_cannot_learn_is_refused_before_training(data, tmp_path):
    work = tfopt.Work(small_model(), data, tmp_path)
    with pytest.raises(ValueError, match="did you mean 'hidden'"):
        tfopt.validate([tfopt.Train(1, layers=["hiden"])], work)
    with pytest.raises(ValueError, match="none has weights that can learn"):
        tfopt.validate([tfopt.Train(1, layers=["relu"])], work)


def test_a_classifier_gives_its_features(tmp_path):
    base = small_model()
    rng = np.random.default_rng(0)
    base.set_weights([rng.uniform(0.1, 1.0, weight.shape) for weight in base.get_weights()])
    base.save(tmp_path / "base.keras")
    model = tfopt.models.transfer((8, 8, 2), 5, tmp_path / "base.keras", dropout=0.5)
    x = rng.normal(size=(6, 8, 8, 2)).astype("float32")
    features = keras.Model(base.inputs[0], base.get_layer("hidden").output)(x)
    head = model.get_layer("probabilities")
    assert head.kernel.shape == (12, 5)
    assert np.array_equal(keras.Model(model.inputs[0], head.input)(x), features)
    assert model(x).shape == (6, 5)


def test_images_of_another_size(tmp_path):
    base = keras.Sequential(
        [keras.Input((16, 16, 3)), layers.Conv2D(4, 3), layers.GlobalAveragePooling2D(), layers.Dense(2)]
    )
    base.save(tmp_path / "base.keras")
    model = tfopt.models.transfer((20, 12, 3), 3, tmp_path / "base.keras")
    x = np.random.default_rng(0).normal(size=(2, 20, 12, 3)).astype("float32")
    features = keras.Model(model.inputs[0], model.get_layer("probabilities").input)(x)
    np.testing.assert_allclose(features, np.mean(base.layers[0](x), (1, 2)), rtol=1e-5)


def test_bases_that_are_none(tmp_path):
    keras.Sequential([keras.Input((8, 8, 2)), layers.Conv2D(4, 3)]).save(tmp_path / "headless.keras")
    with pytest.raises(ValueError, match="is no classifier"):
        tfopt.models.transfer((8, 8, 2), 5, tmp_path / "headless.keras")
    with pytest.raises(ValueError, match="did you mean MobileNetV2"):
        tfopt.models.transfer((32, 32, 3), 5, "MobilNetV2")
