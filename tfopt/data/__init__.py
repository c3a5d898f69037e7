"""Data: sources, checks and the pipelines that feed training."""

from tfopt.data.check import check_data
from tfopt.data.coerce import as_data
from tfopt.data.dataset import Data, from_arrays
from tfopt.data.folder import from_folder
from tfopt.data.npy import from_npy, from_npz
from tfopt.data.pipeline import Pipeline
from tfopt.data.prepare import Preparation, prepare
from tfopt.data.profile import Profile, profile
from tfopt.data.service import local_service
from tfopt.data.tfds import from_tfds

__all__ = [
    "Data",
    "Pipeline",
    "Preparation",
    "Profile",
    "as_data",
    "check_data",
    "from_arrays",
    "from_folder",
    "from_npy",
    "from_npz",
    "from_tfds",
    "local_service",
    "prepare",
    "profile",
]
