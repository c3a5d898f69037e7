"""What a model could become, and what each would cost: known before anything is trained."""

import dataclasses
import json
import math
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from tfopt.analyze.allocate import allocate_zeros, levels_for
from tfopt.analyze.result import Kind, Sensitivity
from tfopt.analyze.sensitivity import sensitivity
from tfopt.channels.plan import plan_channels
from tfopt.config import require
from tfopt.data import Data
from tfopt.files import write_text
from tfopt.graph import deep_graphs
from tfopt.kernels import select_kernels
from tfopt.measure.file import Measurement
from tfopt.prune.magnitude import magnitude_mask
from tfopt.quantize.aware import quantize_aware
from tfopt.quantize.calibrate import calibrate
from tfopt.record import Record
from tfopt.tflite.export import export_tflite
from tfopt.tune.goal import Goal
from tfopt.tune.reference import FILE, FOLDER, Reference, latency_ratio
from tfopt.tune.widths import Channels, narrowed, ratios, strain, widths_by_latency, widths_by_share

# Fractions of all prunable weights.
_ZEROS = (0.0, 0.3, 0.5, 0.65, 0.8)
_LEVELS = {"sparsity": (0.3, 0.5, 0.7, 0.9), "ratio": levels_for({"macs": 0.1}), "bits": (8, 4)}
# What one layer alone may lose with 4 bits, before training, so that it has them.
_BITS_DROP = 0.02


@dataclasses.dataclass(frozen=True)
class Option(Record):
    """A way to make a model smaller, with what its file is expected to cost.

    Args:
      channels: by the first layer of each group that becomes narrower, how many channels stay.
      zeros: the fraction of all prunable weights that are zero.
      few_bits: layers whose weights have 4 bits.
      strain: what fewer channels cost the model before training, see `tfopt.tune.widths`; 0: it has all of them.
      width: the share of the multiplications that is left, or of the parameters where the input leaves a size open.
      bytes: of the file.
      gzip_bytes: of the file.
      latency: as a share of the plain int8 file's; None: not measured.
    """

    channels: Mapping[str, int]
    zeros: float
    few_bits: tuple[str, ...]
    strain: float
    width: float
    bytes: float
    gzip_bytes: float
    latency: float | None

    def __str__(self) -> str:
        parts = [f"channels for {self.width:.0%} of the work"] if self.channels else []
        parts += [f"{self.zeros:.0%} zeros"] if self.zeros else []
        parts += [f"4 bits in {len(self.few_bits)} layers"] if self.few_bits else []
        return ", ".join(parts) or "all channels, int8"


@dataclasses.dataclass(frozen=True)
class Options(Record):
    """All options, and the sensitivities that they were made from.

    Args:
      options: those with more channels first, then those with fewer zeros.
      sparsity: the sensitivity to zeros.
      notes: what is not among them, and why.
    """

    options: tuple[Option, ...]
    sparsity: Sensitivity
    notes: tuple[str, ...]


@deep_graphs()
def find_options(model: keras.Model, data: Data, goal: Goal, reference: Reference, workdir: pathlib.Path) -> Options:
    """Measures sensitivities and costs, once.

    Args:
      model: trained, as it came.
      data: those to search with.
      goal: what is aimed at.
      reference: of the model.
      workdir: where all is kept.
    """
    path = workdir / "options.json"
    if not path.exists():
        notes: list[str] = []
        with tempfile.TemporaryDirectory() as folder:
            pricing = _Pricing(model, data, reference, goal, workdir / FOLDER / FILE, pathlib.Path(folder, "m.tflite"))
            zeros = sensitivity(model, data, "sparsity", _LEVELS["sparsity"])
            few_bits = _few_bits(model, data, goal, notes)
            found = pricing.options(zeros, pricing.widths(notes), few_bits)
        written = {"options": [each.to_dict() for each in found], "sparsity": zeros.to_dict(), "notes": notes}
        write_text(path, json.dumps(written, indent=1))
    return _read(json.loads(path.read_text(encoding="utf-8")))


def _few_bits(model: keras.Model, data: Data, goal: Goal, notes: list[str]) -> tuple[str, ...]:
    """The layers that bear 4 bits, where only sizes count: on CPUs these are slower than 8."""
    if not goal.costs or goal.max_latency_ms is not None:
        return ()
    found = sensitivity(model, data, "bits", _LEVELS["bits"])
    chosen = tuple(layer for layer, bits in found.targets(_BITS_DROP).items() if bits == 4)
    if not chosen:
        notes.append(f"4 bits: each layer alone loses more than {_BITS_DROP:g} with them, before training")
    return chosen


@dataclasses.dataclass(frozen=True)
class _Pricing:
    """Files of a model as it is, for what trained ones will cost: training hardly changes that.

    Args:
      model: trained, as it came.
      data: to calibrate with.
      reference: of the model.
      goal: what is aimed at.
      plain: the plain int8 file.
      path: where files are written for the moment.
    """

    model: keras.Model
    data: Data
    reference: Reference
    goal: Goal
    plain: pathlib.Path
    path: pathlib.Path

    @property
    def is_timed(self) -> bool:
        """Whether latencies count."""
        return not self.goal.costs or self.goal.max_latency_ms is not None

    def time(self, model: keras.Model) -> float:
        """The latency of a model's int8 file as a share of the plain one's."""
        export_tflite(model, self.path, "int8", self.data)
        return latency_ratio(self.path, self.plain)

    def widths(self, notes: list[str]) -> list[tuple[Channels, float]]:
        """Channels that could stay, each with its strain, without repetition."""
        model = self.model
        try:
            plan = plan_channels(model, ratio=0.0)
        except ValueError as error:
            notes.append(f"no channels can go: {error}")
            return []
        found = sensitivity(model, self.data, "ratio", _LEVELS["ratio"])
        widths: list[Channels] = []
        if self.is_timed:
            widths += widths_by_latency(model, found, self.time)
        if self.goal.costs:
            sizes = self.goal.max_bytes is not None or self.goal.max_gzip_bytes is not None
            widths += widths_by_share(model, found, "parameters" if sizes or not plan.before.macs else "macs", notes)
        different = [each for index, each in enumerate(widths) if each and each not in widths[:index]]
        return [(each, strain(model, found, each)) for each in different]

    def options(
        self, zeros: Sensitivity, widths: Sequence[tuple[Channels, float]], few_bits: tuple[str, ...]
    ) -> list[Option]:
        """All combinations."""
        model, data, reference = self.model, self.data, self.reference
        shares = {share: _with_zeros(model, data, zeros, share, self.path).gzip_bytes for share in _ZEROS}
        fewer = _with_few_bits(model, data, few_bits, self.path) if few_bits else None
        found = []
        for channels, strained in [({}, 0.0), *widths]:
            smaller = narrowed(model, channels)
            whole = export_tflite(smaller, self.path, "int8", data)
            latency = None
            if self.is_timed:
                latency = latency_ratio(self.path, self.plain) if channels else 1.0
            width = _width(model, channels)
            for share, packed in shares.items():
                gzip_bytes = whole.gzip_bytes * packed / reference.gzip_bytes
                how: dict[str, Any] = {"channels": dict(channels), "zeros": share, "strain": strained, "width": width}
                found.append(Option(**how, few_bits=(), bytes=whole.bytes, gzip_bytes=gzip_bytes, latency=latency))
                if fewer is not None:
                    # What fewer bits save is in the weights; the rest of a file stays.
                    weights = smaller.count_params() / model.count_params()
                    size = whole.bytes - weights * (reference.bytes - fewer.bytes)
                    saved = weights * (reference.gzip_bytes - fewer.gzip_bytes) * packed / reference.gzip_bytes
                    gzip_bytes -= saved
                    found.append(Option(**how, few_bits=few_bits, bytes=size, gzip_bytes=gzip_bytes, latency=None))
        return found


def _width(model: keras.Model, channels: Channels) -> float:
    """The share of the multiplications that is left, or of the parameters where these are all that is known."""
    if not channels:
        return 1.0
    plan = plan_channels(model, layers=ratios(model, channels), multiple=1)
    if plan.before.macs and plan.after.macs:
        return plan.after.macs / plan.before.macs
    return plan.after.parameters / plan.before.parameters


def _with_zeros(model: keras.Model, data: Data, found: Sensitivity, share: float, path: pathlib.Path) -> Measurement:
    """The int8 file of the model with its smallest weights at zero."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    for name, fraction in (allocate_zeros(model, found, share) if share else {}).items():
        for variable in select_kernels(copy, [name])[0]:
            variable.assign(variable * keras.ops.cast(magnitude_mask(variable, fraction), variable.dtype))
    return export_tflite(copy, path, "int8", data)


def _with_few_bits(model: keras.Model, data: Data, few_bits: Sequence[str], path: pathlib.Path) -> Measurement:
    """The file of the model with 4 bits in some layers."""
    aware = quantize_aware(model, 8, layers=dict.fromkeys(few_bits, 4))
    calibrate(aware, data)
    return export_tflite(aware, path)


def require_conceivable(goal: Goal, options: Options) -> None:
    """Refuses a limit below what even the smallest option costs.

    Raises:
      ValueError: names the smallest.
    """
    for cost in ("bytes", "gzip_bytes"):
        smallest, limit = min(each[cost] for each in options.options), goal.costs.get(cost, math.inf)
        require(
            limit >= smallest,
            f"max_{cost}={limit:g} cannot be reached: the smallest file that fewer channels, zeros and fewer bits can "
            f"make of this model has about {smallest:,.0f} {cost.replace('_', ' ')}. Ask for more, or begin with a "
            "smaller model",
        )


def _read(written: Mapping[str, Any]) -> Options:
    found = written["sparsity"]
    values = {layer: {float(level): each for level, each in row.items()} for layer, row in found["values"].items()}
    kind: Kind = found["kind"]
    options = tuple(Option(**{**each, "few_bits": tuple(each["few_bits"])}) for each in written["options"])
    return Options(options, Sensitivity(kind, found["metric"], found["baseline"], values), tuple(written["notes"]))
