"""tfopt: makes Keras 3 models smaller and faster, down to a verified LiteRT file."""

from tfopt import augment, signals, tabular, text, tune
from tfopt import blocks as blocks
from tfopt import ensemble as ensemble
from tfopt import fuse as fuse
from tfopt.analyze.result import Sensitivity
from tfopt.analyze.sensitivity import sensitivity
from tfopt.analyze.stage import AnalyzeSensitivity
from tfopt.chain import run, validate
from tfopt.channels.prune import prune_channels
from tfopt.channels.stage import PruneChannels
from tfopt.cluster.callback import ClusteringCallback
from tfopt.cluster.stage import Cluster
from tfopt.clusters import Clustered
from tfopt.data import Data, as_data, from_arrays, from_folder, from_npy, from_npz, from_tfds
from tfopt.data.stage import Augment, Clean, LoadData, LoadFolder, LoadTFDS, Prepare
from tfopt.distill.distiller import Distiller
from tfopt.distill.stage import Distill
from tfopt.invariants import Invariant, Sparsity
from tfopt.launch import run_recipe
from tfopt.load import load_model
from tfopt.measure.file import measure_tflite
from tfopt.measure.latency import measure_latency
from tfopt.measure.stage import Benchmark
from tfopt.prune.callback import PruningCallback
from tfopt.prune.stage import Prune
from tfopt.quantize.aware import quantize_aware
from tfopt.quantize.calibrate import calibrate
from tfopt.quantize.callback import FreezeRanges
from tfopt.quantize.island import float_islands
from tfopt.quantize.stage import QuantizeAware
from tfopt.report import Report
from tfopt.schedules import ConstantSparsity, PolynomialDecay
from tfopt.stage import Outcome, Stage, Work
from tfopt.tflite.export import export_tflite
from tfopt.tflite.stage import ExportTFLite
from tfopt.tflite.verify import verify_tflite
from tfopt.train import models
from tfopt.train.fit import Fit
from tfopt.train.rates import Cosine
from tfopt.train.replicas import on_strategy
from tfopt.train.stage import Build, LoadModel, Train

__all__ = [
    "AnalyzeSensitivity",
    "Augment",
    "Benchmark",
    "Build",
    "Clean",
    "Cluster",
    "Clustered",
    "ClusteringCallback",
    "ConstantSparsity",
    "Cosine",
    "Data",
    "Distill",
    "Distiller",
    "ExportTFLite",
    "Fit",
    "FreezeRanges",
    "Invariant",
    "LoadData",
    "LoadFolder",
    "LoadModel",
    "LoadTFDS",
    "Outcome",
    "PolynomialDecay",
    "Prepare",
    "Prune",
    "PruneChannels",
    "PruningCallback",
    "QuantizeAware",
    "Report",
    "Sensitivity",
    "Sparsity",
    "Stage",
    "Train",
    "Work",
    "as_data",
    "augment",
    "calibrate",
    "export_tflite",
    "float_islands",
    "from_arrays",
    "from_folder",
    "from_npy",
    "from_npz",
    "from_tfds",
    "load_model",
    "measure_latency",
    "measure_tflite",
    "models",
    "on_strategy",
    "prune_channels",
    "quantize_aware",
    "run",
    "run_recipe",
    "sensitivity",
    "signals",
    "tabular",
    "text",
    "tune",
    "validate",
    "verify_tflite",
]
