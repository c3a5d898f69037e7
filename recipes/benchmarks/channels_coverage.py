"""Which models of `keras.applications` lose half of their channels, and what is left of them.

    python -m recipes.benchmarks.channels_coverage
    python -m recipes.benchmarks.channels_coverage --models=MobileNetV2,ConvNeXtTiny --noexport

Each has random weights and the smallest images that it takes. With ratio 0 it must give the outputs that it gave
before. With ratio 0.5 its size is given for channels rounded to multiples of 1 and of 8; the latter predicts, trains a
step, and is exported to int8 by `quantize_aware`. Each runs in a process of its own, the largest last.
`--models` is the flag of `qat_coverage`.
"""

import concurrent.futures
import dataclasses
import multiprocessing
import pathlib
import tempfile

import keras
import numpy as np
import rich.console
import rich.table
from absl import app, flags

import tfopt
from recipes.benchmarks.qat_coverage import CLASSES, application, images, settle
from tfopt.channels.plan import ChannelPlan, plan_channels
from tfopt.channels.rebuild import apply_plan

_EXPORT = flags.DEFINE_bool("export", True, "Whether the smaller model is exported to int8.")


@dataclasses.dataclass(frozen=True)
class Coverage:
    """What became of a model.

    Args:
      name: of the model.
      reason: why it has no smaller one, or "ok".
      parameters: how many it had.
      difference: the largest that ratio 0 makes to an output, relative to the largest output or to 1.
      shares: of the parameters, what is left at ratio 0.5 with multiples of 1 and of 8.
      macs: likewise of the multiplications.
      skipped: layers left whole at multiples of 1, but for the output's.
      int8_bytes: size of the smaller model's file, int8 throughout; 0 where it was not asked for.
    """

    name: str
    reason: str
    parameters: int = 0
    difference: float = float("nan")
    shares: tuple[float, float] = (float("nan"), float("nan"))
    macs: tuple[float, float] = (float("nan"), float("nan"))
    skipped: tuple[str, ...] = ()
    int8_bytes: int = 0


def cover(name: str, export: bool) -> Coverage:
    """Prunes a model and uses what is left.

    Raises:
      ValueError: the sizes are not those planned, or training gives no number.
    """
    keras.utils.set_random_seed(0)
    model, batch = application(name), images(name, 32)
    settle(model, batch)
    expected = model.predict(batch, verbose=0)
    same, _ = apply_plan(model, plan_channels(model, ratio=0.0))
    difference = np.abs(same.predict(batch, verbose=0) - expected).max() / max(1.0, np.abs(expected).max())
    del same
    plans = [plan_channels(model, ratio=0.5, multiple=multiple) for multiple in (1, 8)]
    for plan in plans:
        small, _ = apply_plan(model, plan)
        if small.count_params() != plan.after.parameters:
            raise ValueError(f"{small.count_params()} parameters were left of {name}, {plan.after.parameters} planned")
    measured = 0
    if export:
        with tempfile.TemporaryDirectory() as folder:
            aware = tfopt.quantize_aware(small)
            tfopt.calibrate(aware, batch)
            measured = tfopt.export_tflite(aware, pathlib.Path(folder) / "model.tflite").bytes
    small.compile(keras.optimizers.SGD(1e-5), "sparse_categorical_crossentropy", jit_compile=False)
    loss = small.train_on_batch(batch[:8], np.arange(8) % CLASSES)
    if not np.isfinite(loss):
        raise ValueError(f"the training step of {name} gave a loss of {loss}")
    return Coverage(
        name,
        "ok",
        model.count_params(),
        float(difference),
        (_share(plans[0], "parameters"), _share(plans[1], "parameters")),
        (_share(plans[0], "macs"), _share(plans[1], "macs")),
        tuple(layer for layer, reason in plans[0].skipped.items() if "outputs of the model" not in reason),
        measured,
    )


def _share(plan: ChannelPlan, cost: str) -> float:
    return float(getattr(plan.after, cost) / getattr(plan.before, cost))


def cover_or_reason(name: str, export: bool) -> Coverage:
    """`cover`, with the reason where it fails."""
    try:
        return cover(name, export)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what the table shows
        return Coverage(name, f"{type(error).__name__}: {str(error)[:300]}")


def apart(name: str, export: bool) -> Coverage:
    """`cover_or_reason` in a process of its own, which may run out of memory."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(cover_or_reason, name, export).result()
        except concurrent.futures.process.BrokenProcessPool:
            return Coverage(name, "the process was killed: too little memory")


def main(_: list[str]) -> None:
    """Prints a line for each model as it is done, then the table."""
    console = rich.console.Console()
    columns = ["model", "parameters", "result", "ratio 0", "left, by 1", "left, by 8", "MACs, by 1", "MACs, by 8"]
    table = rich.table.Table(*columns, "whole", "int8 bytes", title="prune_channels on keras.applications, ratio 0.5")
    rows = []
    for name in flags.FLAGS.models:
        row = apart(name, _EXPORT.value)
        console.print(dataclasses.asdict(row))
        rows.append(row)
        table.add_row(
            name,
            f"{row.parameters:,}",
            row.reason,
            f"{row.difference:.1e}",
            *(f"{share:.3f}" for share in (*row.shares, *row.macs)),
            str(len(row.skipped)),
            f"{row.int8_bytes:,}",
        )
    console.print(table)
    good = [row for row in rows if row.reason == "ok" and row.difference <= 1e-5 and row.shares[0] <= 0.35]
    console.print(f"{len(good)} of {len(rows)} models equal themselves at ratio 0 and keep at most .35 at ratio 0.5")


if __name__ == "__main__":
    app.run(main)
