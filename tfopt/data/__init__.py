"""Data: sources, checks and the pipelines that feed training."""

from tfopt.data.check import check_data
from tfopt.data.clean import clean
from tfopt.data.coerce import as_data
from tfopt.data.dataset import Data, from_arrays
from tfopt.data.folder import from_folder
from tfopt.data.generator import from_generator
from tfopt.data.hdf5 import from_hdf5
from tfopt.data.npy import from_npy, from_npz
from tfopt.data.pipeline import Pipeline
from tfopt.data.prepare import Preparation, prepare
from tfopt.data.profile import Profile, profile
from tfopt.data.records import from_tfrecord
from tfopt.data.service import local_service
from tfopt.data.table import from_table
from tfopt.data.tfds import from_tfds
from tfopt.data.write_records import write_tfrecord

__all__ = [
    "Data",
    "Pipeline",
    "Preparation",
    "Profile",
    "as_data",
    "check_data",
    "clean",
    "from_arrays",
    "from_folder",
    "from_generator",
    "from_hdf5",
    "from_npy",
    "from_npz",
    "from_table",
    "from_tfds",
    "from_tfrecord",
    "local_service",
    "prepare",
    "profile",
    "write_tfrecord",
]
