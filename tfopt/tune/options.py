"""What a model could become, and what each would cost: known before anything is trained."""

import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from tfopt.analyze.allocate import allocate, allocate_zeros, levels_for
from tfopt.analyze.result import Kind, Sensitivity
from tfopt.analyze.sensitivity import sensitivity
from tfopt.channels.plan import NothingPruned, plan_channels
from tfopt.channels.propagate import follow_channels
from tfopt.channels.prune import prune_channels
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

# Shares of the multiplications, or of the parameters where these alone count.
_WIDTHS = (0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.12)
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
      width: the share of the multiplications, or of the parameters, that is left.
      bytes: of the file.
      gzip_bytes: of the file.
      latency: as a share of the plain int8 file's; None: not measured.
    """

    channels: Mapping[str, int]
    zeros: float
    few_bits: tuple[str, ...]
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
        zeros = sensitivity(model, data, "sparsity", _LEVELS["sparsity"])
        notes: list[str] = []
        widths = _widths(model, data, goal, notes)
        few_bits = _few_bits(model, data, goal, notes)
        with tempfile.TemporaryDirectory() as folder:
            found = _priced(model, data, reference, zeros, widths, few_bits, workdir, pathlib.Path(folder, "m.tflite"))
        written = {"options": [each.to_dict() for each in found], "sparsity": zeros.to_dict(), "notes": notes}
        write_text(path, json.dumps(written, indent=1))
    return _read(json.loads(path.read_text(encoding="utf-8")))


def _widths(model: keras.Model, data: Data, goal: Goal, notes: list[str]) -> dict[float, dict[str, int]]:
    """By the share that is left, the channels of each group that becomes narrower."""
    try:
        plan = plan_channels(model, ratio=0.0)
    except ValueError as error:
        notes.append(f"no channels can go: {error}")
        return {}
    found = sensitivity(model, data, "ratio", _LEVELS["ratio"])
    sizes_only = bool(goal.costs) and goal.max_latency_ms is None
    cost = "parameters" if sizes_only or not plan.before.macs else "macs"
    now = counts(model)
    narrowest = min(now[name] for name in found.values)
    # Steps of a half of the narrowest group at most.
    multiple = next(each for each in (8, 4, 2, 1) if each == 1 or each * 2 <= narrowest)
    widths: dict[float, dict[str, int]] = {}
    for share in _WIDTHS:
        try:
            ratios = allocate(model, found, {cost: share}, multiple)
            smaller = plan_channels(model, layers=ratios, multiple=multiple)
        except NothingPruned:
            continue
        except ValueError as error:
            notes.append(f"channels for less than {share:.0%} of the {cost}: {error}")
            break
        left = getattr(smaller.after, cost) / getattr(smaller.before, cost)
        kept = {name: len(smaller.kept[name]) for name in found.values if name in smaller.kept}
        if kept and kept not in widths.values():
            widths[left] = kept
    return widths


def _few_bits(model: keras.Model, data: Data, goal: Goal, notes: list[str]) -> tuple[str, ...]:
    """The layers that bear 4 bits, where only sizes count: on CPUs these are slower than 8."""
    if not goal.costs or goal.max_latency_ms is not None:
        return ()
    found = sensitivity(model, data, "bits", _LEVELS["bits"])
    chosen = tuple(layer for layer, bits in found.targets(_BITS_DROP).items() if bits == 4)
    if not chosen:
        notes.append(f"4 bits: each layer alone loses more than {_BITS_DROP:g} with them, before training")
    return chosen


def _priced(
    model: keras.Model,
    data: Data,
    reference: Reference,
    zeros: Sensitivity,
    widths: Mapping[float, Mapping[str, int]],
    few_bits: tuple[str, ...],
    workdir: pathlib.Path,
    path: pathlib.Path,
) -> list[Option]:
    """All combinations, with the costs of files of the model as it is: training hardly changes them."""
    shares = {share: _with_zeros(model, data, zeros, share, path) for share in _ZEROS}
    fewer = _with_few_bits(model, data, few_bits, path) if few_bits else None
    found = []
    for width, channels in {1.0: {}, **widths}.items():
        smaller = narrowed(model, channels)
        whole, latency = export_tflite(smaller, path, "int8", data), 1.0
        if channels:
            latency = latency_ratio(path, workdir / FOLDER / FILE)
        for share, sparse in shares.items():
            gzip_bytes = whole.gzip_bytes * sparse.gzip_bytes / reference.gzip_bytes
            found.append(Option(dict(channels), share, (), width, whole.bytes, gzip_bytes, latency))
            if fewer is not None:
                size = whole.bytes * fewer.bytes / reference.bytes
                packed = gzip_bytes * fewer.gzip_bytes / reference.gzip_bytes
                found.append(Option(dict(channels), share, few_bits, width, size, packed, None))
    return found


def narrowed(model: keras.Model, channels: Mapping[str, int]) -> keras.Model:
    """The model with so many channels of each group."""
    if not channels:
        return model
    return prune_channels(model, layers=ratios(model, channels), multiple=1)


def ratios(model: keras.Model, channels: Mapping[str, int]) -> dict[str, float]:
    """The shares of the channels that go, so that so many stay of each group; of those that lose any."""
    now = counts(model)
    shares = {name: 1.0 - count / now[name] for name, count in channels.items()}
    return {name: share for name, share in shares.items() if share > 0}


def counts(model: keras.Model) -> dict[str, int]:
    """How many channels each layer makes."""
    return {producer.name: len(producer.ids) for producer in follow_channels(model).producers.values()}


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
    least = {
        "bytes": min(each.bytes for each in options.options),
        "gzip_bytes": min(each.gzip_bytes for each in options.options),
    }
    for cost, smallest in least.items():
        limit = goal.costs.get(cost)
        require(
            limit is None or limit >= smallest,
            f"max_{cost}={limit:g} cannot be reached: the smallest file that fewer channels, zeros and fewer bits can "
            f"make of this model has about {smallest:,.0f} {cost.replace('_', ' ')}. Ask for more, or begin with a "
            "smaller model"
            if limit is not None
            else "",
        )


def _read(written: Mapping[str, Any]) -> Options:
    found = written["sparsity"]
    values = {layer: {float(level): each for level, each in row.items()} for layer, row in found["values"].items()}
    kind: Kind = found["kind"]
    options = tuple(Option(**{**each, "few_bits": tuple(each["few_bits"])}) for each in written["options"])
    return Options(options, Sensitivity(kind, found["metric"], found["baseline"], values), tuple(written["notes"]))
