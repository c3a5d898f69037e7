"""What is between the members of an ensemble and its output, where Keras has no layer for it."""

from typing import Any

import keras


@keras.saving.register_keras_serializable("tfopt")
class Vote(keras.layers.Layer):
    """1 for the class with the highest probability, 0 for the others; of a single output, whether it is above a half.

    Several that are equally high get 1 each. All of it has integer kernels in LiteRT.

    >>> Vote()(keras.ops.convert_to_tensor([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4]])).numpy().tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]
    """

    def call(self, probabilities: Any) -> Any:
        """The vote of a member, of its outputs' shape."""
        ops = keras.ops
        if probabilities.shape[-1] == 1:
            return ops.where(probabilities > 0.5, 1.0, 0.0)
        return ops.where(probabilities >= ops.max(probabilities, axis=-1, keepdims=True), 1.0, 0.0)
