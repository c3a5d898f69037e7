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
from tfopt.kernels import select_kernels
from tfopt.prune.magnitude import magnitude_mask
from tfopt.quantize.aware import quantize_aware
from tfopt.quantize.bits import InInt8
from tfopt.quantize.calibrate import calibrate
from tfopt.record import Record
from tfopt.tflite.export import export_tflite
from tfopt.tune.bits import Bits, fewer_bits
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
_ZEROS = (0.0, 0.3, 0.4, 0.45, 0.5, 0.65, 0.8)
_LEVELS = {"sparsity": (0.3, 0.5, 0.7, 0.9), "ratio": levels_for({"macs": 0.1})}
# Parts of the residual blocks that are taken out together, beside a single one.
_BLOCKS = (0.25, 0.5)
# Training gives more back of zeros and of bits than of channels that went; how much more is a guess, no measurement.
_REGAINED = 0.5


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
            found = pricing.options(zeros, fewer_bits(model, data, goal, notes), notes)
        written = {"options": [each.to_dict() for each in found], "sparsity": zeros.to_dict(), "notes": notes}
        write_text(path, json.dumps(written, indent=1))
    return _read(json.loads(path.read_text(encoding="utf-8")))


@dataclasses.dataclass(frozen=True)
class _Ending:
    """What becomes of the weights.

    Args:
      zeros: fraction of all prunable ones.
      bits: of those layers that have fewer than 8.
      saved_bytes: of the whole model's file.
      gzip_share: of the plain int8 file's compressed size, for the whole model.
    """

    zeros: float
    bits: Bits
    saved_bytes: int
    gzip_share: float


@dataclasses.dataclass(frozen=True)
class _File:
    """What the int8 file of a smaller model costs.

    Args:
      bytes: of the file.
      gzip_bytes: of the file.
      latency: as a share of the plain int8 file's; None: it does not count.
    """

    bytes: int
    gzip_bytes: int
    latency: float | None


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
      files: those that were measured, by the blocks that go and the channels that stay.
    """

    model: keras.Model
    data: Data
    reference: Reference
    goal: Goal
    plain: pathlib.Path
    path: pathlib.Path
    files: dict[Any, _File] = dataclasses.field(default_factory=dict)

    @property
    def is_timed(self) -> bool:
        """Whether latencies count."""
        return not self.goal.costs or self.goal.max_latency_ms is not None

    def file(self, smaller: keras.Model, channels: Channels, blocks: tuple[str, ...] = ()) -> _File:
        """The file of a smaller model, made and timed once for what stays of the whole one."""
        key = blocks, tuple(sorted(channels.items()))
        if key not in self.files:
            file = export_tflite(smaller, self.path, "int8", self.data)
            is_whole = not blocks and not channels
            latency = (1.0 if is_whole else latency_ratio(self.path, self.plain)) if self.is_timed else None
            self.files[key] = _File(file.bytes, file.gzip_bytes, latency)
        return self.files[key]

    def time(self, smaller: keras.Model, channels: Channels, blocks: tuple[str, ...] = ()) -> float:
        """The latency of a smaller model's file as a share of the plain one's; only where latencies count."""
        latency = self.file(smaller, channels, blocks).latency
        assert latency is not None
        return latency

    def options(self, zeros: Sensitivity, bits: Bits | None, notes: list[str]) -> list[Option]:
        """All combinations."""
        model, endings = self.model, self._endings(zeros, bits)
        found = []
        for blocks, channels, strained in self._shapes(notes):
            smaller = narrowed(model, channels, blocks)
            file = self.file(smaller, channels, blocks)
            width = _width(model, smaller) if blocks or channels else 1.0
            weights = smaller.count_params() / model.count_params()
            there = {layer.name for layer in smaller._flatten_layers()}
            for ending in endings:
                drops = [drop for name, drop in ending.bits.drops.items() if name in there]
                lost = math.hypot(_zeros_strain(smaller, zeros, ending.zeros), *drops)
                option = Option(
                    blocks=blocks,
                    channels=dict(channels),
                    zeros=ending.zeros,
                    bits={name: number for name, number in ending.bits.layers.items() if name in there},
                    packed=ending.bits.packed,
                    strain=math.hypot(strained, _REGAINED * lost),
                    width=width,
                    # What fewer bits save is in the weights; the rest of a file stays.
                    bytes=file.bytes - weights * ending.saved_bytes,
                    gzip_bytes=file.gzip_bytes * ending.gzip_share,
                    latency=None if ending.bits.packed else file.latency,
                )
                found.append(option)
        return found

    def _endings(self, zeros: Sensitivity, bits: Bits | None) -> list["_Ending"]:
        """What becomes of the weights of any shape, measured on the whole one."""
        endings = []
        for share in _ZEROS:
            sparse = _with_zeros(self.model, zeros, share)
            file = export_tflite(sparse, self.path, "int8", self.data)
            endings.append(_Ending(share, Bits(), 0, file.gzip_bytes / self.reference.gzip_bytes))
            if bits is not None:
                aware = quantize_aware(sparse, 8 if bits.packed else InInt8(8), layers=bits.layers)
                calibrate(aware, self.data)
                rounded = export_tflite(aware, self.path)
                saved, gzip_share = file.bytes - rounded.bytes, rounded.gzip_bytes / self.reference.gzip_bytes
                endings.append(_Ending(share, bits, saved, gzip_share))
        return endings

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
                    latency = self.time(shorter, {}, blocks)
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
        if not self.is_timed:
            return found, {}
        return found, latency_table(self.model, found, lambda kept: self.time(narrowed(self.model, kept), kept))

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
