"""What TFMOT does, in a process of its own; run as a script: imports tf_keras and TFMOT, and nothing of tfopt.

Reads one JSON object a line. The first is the job: "task", "model" (an .h5 file of tf_keras), "result" (the .h5 file to
write), and what the task needs; each later one names the file with the batches of an epoch. Answers with lines:
{"doing"} before each part, {"epoch"} where it wants batches, {"step", "logs"} on its way, {"result"} at the end, or
{"error", "doing"}. Ends with its input: so also when whoever started it is killed.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# Seconds between two lines about the steps.
_PAUSE = 0.25


class Talk:
    """The lines to and from the process that started this one."""

    def __init__(self, answers: Any) -> None:
        self.answers, self.part = answers, "the start"

    def tell(self, **values: Any) -> None:
        """Writes a line."""
        print(json.dumps(values), file=self.answers, flush=True)

    def doing(self, part: str) -> None:
        """Says what comes next, so that an error can tell where it happened."""
        self.part = part
        self.tell(doing=part)

    def read(self) -> dict[str, Any]:
        """The next line; ends the process where there will be none."""
        line = sys.stdin.readline()
        if not line:
            os._exit(1)
        return json.loads(line)


def train(model: Any, job: dict[str, Any], talk: Talk, callbacks: list[Any]) -> dict[str, list[float]]:
    """Trains a model as the job says, on the batches that it is handed; returns the metrics by epoch."""
    import numpy as np
    import tensorflow as tf
    import tf_keras

    rates = np.load(job["rates"])

    class Rates(tf_keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step: Any) -> Any:
            return tf.gather(tf.constant(rates), tf.minimum(tf.cast(step, tf.int32), len(rates) - 1))

        def get_config(self) -> dict[str, Any]:
            return {}

    class Steps(tf_keras.callbacks.Callback):
        epoch, told = 0, 0.0

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if time.monotonic() - self.told > _PAUSE:
                self.told = time.monotonic()
                talk.tell(step=self.epoch * job["steps_per_epoch"] + batch + 1)

    rate = Rates() if len(rates) > 1 else float(rates[0])
    optimizer = tf_keras.optimizers.get(
        {"class_name": job["optimizer"], "config": {"learning_rate": rate, "global_clipnorm": job["clip_norm"]}}
    )
    model.compile(
        optimizer=optimizer,
        loss=built(job["loss"], tf_keras.losses),
        metrics=built(job["metrics"], tf_keras.metrics),
        weighted_metrics=built(job["weighted_metrics"], tf_keras.metrics),
        loss_weights=job["loss_weights"],
        jit_compile=job["jit_compile"],
        steps_per_execution=job["steps_per_execution"],
    )
    validation = tf.data.Dataset.load(job["validation"])
    weights = job["class_weight"] and {int(label): weight for label, weight in job["class_weight"].items()}
    history: dict[str, list[float]] = {}
    steps = Steps()
    for epoch in range(job["epochs"]):
        talk.tell(epoch=epoch)
        batches = tf.data.Dataset.load(talk.read()["batches"])
        steps.epoch = epoch
        found = model.fit(
            batches.prefetch(tf.data.AUTOTUNE),
            initial_epoch=epoch,
            epochs=epoch + 1,
            validation_data=validation,
            class_weight=weights,
            shuffle=False,
            verbose=0,
            callbacks=[*callbacks, tf_keras.callbacks.TerminateOnNaN(), steps],
        )
        logs = {name: float(values[-1]) for name, values in found.history.items()}
        if not np.isfinite(logs["loss"]):
            raise FloatingPointError(f"the loss became {logs['loss']} in epoch {epoch + 1}: lower the learning rate")
        for name, value in logs.items():
            history.setdefault(name, []).append(value)
        talk.tell(step=(epoch + 1) * job["steps_per_epoch"], logs=logs)
    return history


def built(value: Any, module: Any) -> Any:
    """Losses and metrics as `model.compile` takes them, of their names and configs."""
    if isinstance(value, dict) and "class_name" in value:
        return getattr(module, value["class_name"])(**value["config"])
    if isinstance(value, dict):
        return {name: built(each, module) for name, each in value.items()}
    if isinstance(value, list):
        return [built(each, module) for each in value]
    return value


def prune(model: Any, job: dict[str, Any], talk: Talk) -> dict[str, Any]:
    """Prunes the chosen layers while it trains."""
    from tensorflow_model_optimization.sparsity import keras as sparsity

    talk.doing("prune_low_magnitude")
    wrapped = wrapped_to_prune(model, job)
    if job["epochs"] == 0:
        return {}
    talk.doing("the training with prune_low_magnitude")
    history = train(wrapped, job, talk, [sparsity.UpdatePruningStep()])
    talk.doing("strip_pruning")
    save(sparsity.strip_pruning(wrapped), job["result"])
    return {"history": history}


def wrapped_to_prune(model: Any, job: dict[str, Any]) -> Any:
    """The model with `prune_low_magnitude` around the layers that the job has schedules for."""
    import tf_keras
    from tensorflow_model_optimization.sparsity import keras as sparsity

    def wrap(layer: Any) -> Any:
        wanted = job["schedules"].get(layer.name)
        if wanted is None:
            return layer
        schedule = getattr(sparsity, wanted["class_name"])(**wanted["config"])
        return sparsity.prune_low_magnitude(layer, schedule, **job["pattern"])

    return tf_keras.models.clone_model(model, clone_function=wrap)


def cluster(model: Any, job: dict[str, Any], talk: Talk) -> dict[str, Any]:
    """Clusters the chosen layers while it trains."""
    from tensorflow_model_optimization.clustering import keras as clustering

    talk.doing("cluster_weights")
    wrapped = wrapped_to_cluster(model, job)
    if job["epochs"] == 0:
        return {}
    talk.doing("the training with cluster_weights")
    history = train(wrapped, job, talk, [])
    talk.doing("strip_clustering")
    save(clustering.strip_clustering(wrapped), job["result"])
    return {"history": history}


def wrapped_to_cluster(model: Any, job: dict[str, Any]) -> Any:
    """The model with `cluster_weights` around the layers that the job names."""
    import tf_keras
    from tensorflow_model_optimization.clustering import keras as clustering

    # The public function does not take preserve_sparsity.
    from tensorflow_model_optimization.python.core.clustering.keras import cluster as module

    options = {
        "number_of_clusters": job["number_of_clusters"],
        "cluster_centroids_init": clustering.CentroidInitialization[job["initialization"]],
        "cluster_per_channel": job["per_channel"],
        "preserve_sparsity": job["preserve_sparsity"],
    }

    def wrap(layer: Any) -> Any:
        return module._cluster_weights(layer, **options) if layer.name in job["layers"] else layer

    return tf_keras.models.clone_model(model, clone_function=wrap)


def quantize(model: Any, job: dict[str, Any], talk: Talk) -> dict[str, Any]:
    """Trains with fake quantization, and keeps what the scheme preserves."""
    import numpy as np

    talk.doing("quantize_model" if job["preserve"] == "nothing" else "quantize_apply")
    aware = wrapped_to_quantize(model, job)
    if job["epochs"] == 0:
        return {}
    talk.doing(f"the training with {talk.part}")
    history = train(aware, job, talk, [])
    talk.doing("saving the quantization-aware model")
    save(aware, job["result"])
    np.savez(job["weights"], *aware.get_weights())
    save_kernels(aware, job)
    return {"history": history, **write_graph(aware, job["graph"])}


def wrapped_to_quantize(model: Any, job: dict[str, Any]) -> Any:
    """TFMOT's quantization-aware model, by the scheme that preserves what the job says."""
    from tensorflow_model_optimization.quantization import keras as quantization

    with quantization.quantize_scope():
        if job["preserve"] == "nothing":
            return quantization.quantize_model(model)
        return quantization.quantize_apply(quantization.quantize_annotate_model(model), scheme(job["preserve"]))


def scheme(preserve: str) -> Any:
    """TFMOT's quantization scheme that keeps "zeros", "clusters" or "both"."""
    import importlib

    # They have no public names.
    options = "tensorflow_model_optimization.python.core.quantization.keras.collab_opts"
    kind = "prune" if preserve == "zeros" else "cluster"
    module = importlib.import_module(f"{options}.{kind}_preserve.default_8bit_{kind}_preserve_quantize_scheme")
    if preserve == "zeros":
        return module.Default8BitPrunePreserveQuantizeScheme()
    return module.Default8BitClusterPreserveQuantizeScheme(preserve_sparsity=preserve == "both")


def save_kernels(aware: Any, job: dict[str, Any]) -> None:
    """Writes the trained kernels that the job names, each by its layer and its name there."""
    import numpy as np

    layers = {layer.layer.name: layer for layer in aware.layers if hasattr(layer, "layer")}
    found = {}
    for path, (name, kernel) in job["kernels"].items():
        found[path] = next(each.numpy() for each in layers[name].weights if each.name == kernel)
    np.savez(job["kernels_file"], **found)


def write_graph(model: Any, path: str) -> dict[str, list[str]]:
    """Writes the inference of a model as a graph of constants; returns the names of its inputs and outputs."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    @tf.function(input_signature=[tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in model.inputs])
    def serve(*tensors: Any) -> Any:
        return model(list(tensors) if len(tensors) > 1 else tensors[0], training=False)

    constant = convert_variables_to_constants_v2(serve.get_concrete_function())
    with open(path, "wb") as file:
        file.write(constant.graph.as_graph_def().SerializeToString())
    return {
        "graph_inputs": [each.name for each in constant.inputs],
        "graph_outputs": [each.name for each in constant.outputs],
    }


def export(model: Any, job: dict[str, Any], talk: Talk) -> dict[str, Any]:
    """Writes a .tflite file, as TFMOT's guides do."""
    import numpy as np
    import tensorflow as tf
    import tf_keras

    if job["weights"] is not None:
        # Models of the schemes that preserve cannot be read back from their own files.
        model = wrapped_to_quantize(model, job)
        arrays = np.load(job["weights"])
        model.set_weights([arrays[name] for name in arrays.files])
    talk.doing("TFLiteConverter.from_keras_model")
    # Of a static batch, and with the names of the outputs: TFMOT renames the layers.
    inputs = [
        tf_keras.Input(batch_shape=(job["batch_size"], *tensor.shape[1:]), dtype=tensor.dtype, name=name)
        for tensor, name in zip(model.inputs, job["inputs"], strict=True)
    ]
    made = tf.nest.flatten(model(inputs if len(inputs) > 1 else inputs[0]))
    named = [
        tf_keras.layers.Activation("linear", name=name)(tensor)
        for name, tensor in zip(job["outputs"], made, strict=True)
    ]
    converter = tf.lite.TFLiteConverter.from_keras_model(tf_keras.Model(inputs, named))
    sets, integers = tf.lite.OpsSet, {"int8": tf.int8, "int16x8": tf.int16}
    quantization, builtins = job["quantization"], sets.TFLITE_BUILTINS
    if job["examples"]:
        arrays = np.load(job["examples"])
        examples = [arrays[name] for name in job["inputs"]]
        builtins = {
            "int8": sets.TFLITE_BUILTINS_INT8,
            "int16x8": sets.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
        }[quantization]
        size = job["batch_size"] or 1

        def batches() -> Any:
            for start in range(0, len(examples[0]), size):
                rows = np.arange(start, start + size) % len(examples[0])
                yield [array[rows] for array in examples]

        converter.representative_dataset = batches
    converter.target_spec.supported_ops = [builtins] + [sets.SELECT_TF_OPS] * job["allow_flex"]
    if quantization != "none":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantization == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantization in integers and not job["float_io"]:
        converter.inference_input_type = converter.inference_output_type = integers[quantization]
    with open(job["result"], "wb") as file:
        file.write(converter.convert())
    return {}


def save(model: Any, path: str) -> None:
    """Writes a model as an .h5 file, which TFMOT's models come back from whole."""
    model.save(path, include_optimizer=False)


TASKS: dict[str, Callable[[Any, dict[str, Any], Talk], dict[str, Any]]] = {
    "prune": prune,
    "cluster": cluster,
    "quantize": quantize,
    "export": export,
}


def main(talk: Talk) -> None:
    """Does the job."""
    job = talk.read()
    talk.doing("the import of tf_keras and tensorflow_model_optimization")
    import tensorflow_model_optimization as tfmot
    import tf_keras

    tf_keras.utils.set_random_seed(job["seed"])
    talk.doing("reading the model")
    model = tf_keras.saving.load_model(job["model"], compile=False)
    result = TASKS[job["task"]](model, job, talk)
    versions = {"tf_keras": tf_keras.__version__, "tensorflow_model_optimization": tfmot.__version__}
    talk.tell(result={**result, "versions": versions})


def end_with(parent: int) -> None:
    """Ends this process when the one that started it is gone, in the middle of a training too."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    # TensorFlow prints to stdout; the answers get a channel of their own, and its chatter goes to stderr.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    told = Talk(channel)
    try:
        main(told)
    except Exception as error:  # noqa: BLE001 - handed on to the parent process, which raises it
        told.tell(error=f"{type(error).__name__}: {error}", doing=told.part)
    # Threads of TensorFlow's may wait for the parent's pipes.
    os._exit(0)
