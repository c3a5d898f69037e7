"""What a model could become, and what each would cost: known before anything is trained."""

import dataclasses
import json
import math
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from tfopt.analyze.allocate import allocate_zeros, drop_at, levels_for
from tfopt.analyze.result import Kind, Sensitivity
from tfopt.analyze.sensitivity import sensitivity
from tfopt.blocks.find import find_blocks
from tfopt.channels.plan import plan_channels
from tfopt.config import require
from tfopt.data import Data
from tfopt.files import write_text
from tfopt.graph import deep_graphs
from tfopt.kernels import has_kernel, select_kernels
from tfopt.measure.file import Measurement
from tfopt.prune.magnitude import magnitude_mask
from tfopt.quantize.aware import quantize_aware
from tfopt.quantize.calibrate import calibrate
from tfopt.quantize.convolve import TRANSPOSED
from tfopt.record import Record
from tfopt.tflite.export import export_tflite
from tfopt.tune.goal import Goal
from tfopt.tune.reference import FILE, FOLDER, Reference, latency_ratio
from tfopt.tune.widths import (
    Channels,
    Table,
    latency_table,
    narrowed,
    present,
    strain,
    widths_by_latency,
    widths_by_share,
)

# Fractions of all prunable weights.
_ZEROS = (0.0, 0.3, 0.5, 0.65, 0.8)
_LEVELS = {
    "sparsity": (0.3, 0.5, 0.7, 0.9),
    "ratio": levels_for({"macs": 0.1}),
    "bits": (8, 6, 5, 4, 3),
    "packed": (8, 4),
}
# Parts of the residual blocks that are taken out together, beside a single one.
_BLOCKS = (0.25, 0.5)
# Training gives more back of zeros and of bits than of channels that went; how much more is a guess, no measurement.
_REGAINED = 0.5
# What one layer alone may lose with fewer bits, before training, so that it has them.
_BITS_DROP = 0.02


@dataclasses.dataclass(frozen=True)
class Option(Record):
    """A way to make a model smaller, with what its file is expected to cost.

    Args:
      blocks: the residual blocks that go.
      channels: by the first layer of each group that becomes narrower, how many channels stay.
      zeros: the fraction of all prunable weights that are zero.
      bits: of the weights of those layers that have fewer than 8.
      packed: whether the file holds 4 bits as such.
      strain: what all of this costs the model before training: the root of the sum of the squared drops of what is
        done to single layers.
      width: the share of the multiplications that is left, or of the parameters where the input leaves a size open.
      bytes: of the file.
      gzip_bytes: of the file.
      latency: as a share of the plain int8 file's; None: not measured.
    """

    blocks: tuple[str, ...]
    channels: Mapping[str, int]
    zeros: float
    bits: Mapping[str, int]
    packed: bool
    strain: float
    width: float
    bytes: float
    gzip_bytes: float
    latency: float | None

    def __str__(self) -> str:
        parts = [f"without {', '.join(self.blocks)}"] if self.blocks else []
        parts += [f"channels for {self.width:.0%} of the work"] if self.channels else []
        parts += [f"{self.zeros:.0%} zeros"] if self.zeros else []
        if self.bits:
            numbers = sorted(set(self.bits.values()))
            spread = f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]}"
            parts.append(f"{spread} bits in {len(self.bits)} layers")
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
            found = pricing.options(zeros, _fewer_bits(model, data, goal, notes), notes)
        written = {"options": [each.to_dict() for each in found], "sparsity": zeros.to_dict(), "notes": notes}
        write_text(path, json.dumps(written, indent=1))
    return _read(json.loads(path.read_text(encoding="utf-8")))


@dataclasses.dataclass(frozen=True)
class _Bits:
    """How many bits layers bear.

    Args:
      layers: those with fewer than 8, with their number.
      drops: what each costs alone.
      packed: whether the file holds 4 bits as such.
    """

    layers: Mapping[str, int]
    drops: Mapping[str, float]
    packed: bool


def _fewer_bits(model: keras.Model, data: Data, goal: Goal, notes: list[str]) -> _Bits | None:
    """The bits that layers bear, where they save what counts; None: they do not.

    Packed ones make the file smaller, and slow; others save after gzip only, and cost no time.
    """
    packed = bool(goal.costs) and goal.max_latency_ms is None
    if goal.costs and not packed and goal.max_gzip_bytes is None:
        return None

    def bears(layer: keras.Layer) -> bool:
        """Whether LiteRT has an operator for it."""
        return has_kernel(layer) and not isinstance(layer, (keras.layers.Embedding, *(TRANSPOSED if packed else ())))

    found = sensitivity(model, data, "bits", _LEVELS["packed" if packed else "bits"], bears)
    chosen = {layer: int(bits) for layer, bits in found.targets(_BITS_DROP).items() if bits < 8}
    if not chosen:
        notes.append(f"fewer bits: each layer alone loses more than {_BITS_DROP:g} with them, before training")
        return None
    return _Bits(chosen, {layer: found.drop(layer, bits) for layer, bits in chosen.items()}, packed)


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

    def options(self, zeros: Sensitivity, bits: _Bits | None, notes: list[str]) -> list[Option]:
        """All combinations."""
        model, data, reference = self.model, self.data, self.reference
        sparse = [_with_zeros(model, zeros, share) for share in _ZEROS]
        files = [export_tflite(each, self.path, "int8", data) for each in sparse]
        rounded = [_with_fewer_bits(each, data, bits, self.path) for each in sparse] if bits is not None else []
        found = []
        for blocks, channels, strained in self._shapes(notes):
            smaller = narrowed(model, channels, blocks)
            whole = export_tflite(smaller, self.path, "int8", data)
            is_smaller = bool(blocks or channels)
            latency = (latency_ratio(self.path, self.plain) if is_smaller else 1.0) if self.is_timed else None
            width = _width(model, smaller) if is_smaller else 1.0
            weights = smaller.count_params() / model.count_params()
            for index, share in enumerate(_ZEROS):
                squares = strained**2 + (_REGAINED * _zeros_strain(smaller, zeros, share)) ** 2
                gzip_bytes = whole.gzip_bytes * files[index].gzip_bytes / reference.gzip_bytes
                how: dict[str, Any] = {"blocks": blocks, "channels": dict(channels), "zeros": share, "width": width}
                sizes: dict[str, Any] = {"bytes": whole.bytes, "gzip_bytes": gzip_bytes}
                found.append(Option(**how, bits={}, packed=False, strain=math.sqrt(squares), latency=latency, **sizes))
                if bits is not None:
                    there = {layer.name for layer in smaller._flatten_layers()} & bits.layers.keys()
                    squares += sum((_REGAINED * max(0.0, bits.drops[name])) ** 2 for name in there)
                    # What fewer bits save is in the weights; the rest of a file stays.
                    sizes = {
                        "bytes": whole.bytes - weights * (reference.bytes - rounded[index].bytes),
                        "gzip_bytes": whole.gzip_bytes * rounded[index].gzip_bytes / reference.gzip_bytes,
                    }
                    fewer_bits: dict[str, Any] = {
                        "bits": {name: number for name, number in bits.layers.items() if name in there},
                        "packed": bits.packed,
                    }
                    time = None if bits.packed else latency
                    found.append(Option(**how, **fewer_bits, strain=math.sqrt(squares), latency=time, **sizes))
        return found

    def _shapes(self, notes: list[str]) -> Iterator[tuple[tuple[str, ...], Channels, float]]:
        """Blocks that could go and channels that could stay, each with its strain, without repetition."""
        model = self.model
        yield (), {}, 0.0
        narrower, table = self._narrower(notes)
        for blocks, drop in self._shorter(notes):
            shorter = narrowed(model, {}, blocks)
            widths: list[Channels] = [{}]
            if narrower is not None:
                left = present(shorter, narrower)
                if self.is_timed:
                    latency = self.time(shorter) if blocks else 1.0
                    widths += widths_by_latency({name: table[name] for name in left.values}, latency)
                if left.values:
                    sizes = not self.goal.costs or bool({"bytes", "gzip_bytes"} & self.goal.costs.keys())
                    macs = plan_channels(shorter, ratio=0.0).before.macs
                    cost = "parameters" if sizes or not macs else "macs"
                    widths += widths_by_share(shorter, left, cost, notes)
            for index, channels in enumerate(widths):
                if channels not in widths[:index] and (blocks or channels):
                    strained = strain(model, narrower, channels) if narrower is not None else 0.0
                    yield blocks, channels, math.hypot(strained, drop)

    def _narrower(self, notes: list[str]) -> tuple[Sensitivity | None, Table]:
        """What fewer channels of each group cost the model, and what they save of the time."""
        try:
            plan_channels(self.model, ratio=0.0)
        except ValueError as error:
            notes.append(f"no channels can go: {error}")
            return None, {}
        found = sensitivity(self.model, self.data, "ratio", _LEVELS["ratio"])
        return found, latency_table(self.model, found, self.time) if self.is_timed else {}

    def _shorter(self, notes: list[str]) -> list[tuple[tuple[str, ...], float]]:
        """Residual blocks that could go, those first that cost least alone, with what they cost together."""
        count = len(find_blocks(self.model))
        none: tuple[str, ...] = ()
        if not count:
            notes.append("no residual blocks can go")
            return [(none, 0.0)]
        found = sensitivity(self.model, self.data, "blocks")
        drops = {name: max(0.0, found.drop(name, 1.0)) for name in found.values}
        order = sorted(drops, key=lambda name: drops[name])
        numbers = sorted({0, 1, *(math.ceil(part * count) for part in _BLOCKS)})
        return [(tuple(order[:number]), math.hypot(*(drops[each] for each in order[:number]))) for number in numbers]


def _zeros_strain(model: keras.Model, found: Sensitivity, share: float) -> float:
    """The root of the sum of the squared drops of single layers with so many zeros."""
    zeros = allocate_zeros(model, present(model, found), share) if share else {}
    return math.hypot(*(max(0.0, drop_at(found, name, fraction)) for name, fraction in zeros.items()))


def _width(model: keras.Model, smaller: keras.Model) -> float:
    """The share of the multiplications that is left, or of the parameters where these are all that is known."""
    try:
        before, after = (plan_channels(each, ratio=0.0).before for each in (model, smaller))
    except ValueError:
        return smaller.count_params() / model.count_params()
    if before.macs and after.macs:
        return after.macs / before.macs
    return after.parameters / before.parameters


def _with_zeros(model: keras.Model, found: Sensitivity, share: float) -> keras.Model:
    """The model with its smallest weights at zero."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    for name, fraction in (allocate_zeros(model, found, share) if share else {}).items():
        for variable in select_kernels(copy, [name])[0]:
            variable.assign(variable * keras.ops.cast(magnitude_mask(variable, fraction), variable.dtype))
    return copy


def _with_fewer_bits(model: keras.Model, data: Data, bits: _Bits, path: pathlib.Path) -> Measurement:
    """The file of the model with fewer bits in some layers."""
    aware = quantize_aware(model, 8, layers=bits.layers, packed=bits.packed)
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
    options = tuple(Option(**{**each, "blocks": tuple(each["blocks"])}) for each in written["options"])
    return Options(options, Sensitivity(kind, found["metric"], found["baseline"], values), tuple(written["notes"]))
