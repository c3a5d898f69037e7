"""The stage `ExportTFLite` as TFMOT's guides export: by the converter of TensorFlow, from the tf_keras model."""

import dataclasses
import pathlib
import tempfile
from typing import Any, cast

import numpy as np

from tfopt.config import require
from tfopt.files import atomic_path
from tfopt.measure.file import Measurement, measure_tflite
from tfopt.stage import Work
from tfopt.tflite.examples import read_examples
from tfopt.tflite.export import INTEGER_IO, check_promise
from tfopt.tflite.flatbuffer import read_tflite
from tfopt.tflite.model import input_specs
from tfopt.tflite.run import check_runs
from tfopt.tflite.stage import ExportTFLite as Native
from tfopt.tfmot.held import ASSETS, held_in
from tfopt.tfmot.process import run_task
from tfopt.tfmot.translate import to_tf_keras, write


@dataclasses.dataclass(frozen=True, repr=False)
class ExportTFLite(Native):
    """Writes the model as a .tflite file from tf_keras, and compares the file with the model on the test split.

    Fields, checks and report are those of `tfopt.ExportTFLite`. A quantization-aware model of TFMOT's is written with
    its trained ranges; how far its file is from it is reported, and not held against LiteRT's own kernels.

    >>> ExportTFLite("float16")
    tfmot.ExportTFLite(quantization='float16')
    """

    def __repr__(self) -> str:
        return f"tfmot.{super().__repr__()}"

    def write(self, work: Work, path: pathlib.Path, quantization: str) -> Measurement:
        """Writes the file."""
        model, data = work.need_model(), work.need_data()
        held, specs = held_in(model), input_specs(model)
        require(
            held is None or quantization == "int8",
            f"{model.name!r} is quantization-aware and is exported as int8, received quantization={quantization!r}",
        )
        names = [spec.name for spec in specs]
        with tempfile.TemporaryDirectory() as crossing, atomic_path(path) as temporary:
            file, weights, arrays = (pathlib.Path(crossing, each) for each in (*ASSETS[1:], "examples.npz"))
            if held is None:
                translation = to_tf_keras(model)
                write(translation.model, file)
                outputs = translation.outputs
            else:
                held.save_assets(crossing)
                outputs = [each._keras_history.operation.name for each in model.outputs]
            calibrates = held is None and quantization in INTEGER_IO
            if calibrates:
                examples = read_examples(data, specs, self.calibration_examples, "train", "calibration_data")
                np.savez(arrays, **cast(Any, examples.inputs))
            job = {
                "model": str(file),
                "weights": None if held is None else str(weights),
                "preserve": None if held is None else held.preserve,
                "result": str(temporary),
                "inputs": names,
                "outputs": outputs,
                "quantization": quantization,
                "examples": str(arrays) if calibrates else None,
                "batch_size": self.batch_size,
                "float_io": self.float_io,
                "allow_flex": self.allow_flex,
                "seed": work.seed,
            }
            run_task("export", job)
            check_promise(read_tflite(temporary), quantization, self.float_io, self.allow_flex)
            check_runs(temporary)
        return measure_tflite(path)
