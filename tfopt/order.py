"""Which technique may follow which, where the promises alone do not tell: the reasons, before anything is trained."""

from collections.abc import Collection
from typing import Literal

from tfopt.clusters import Clustered
from tfopt.config import require
from tfopt.invariants import Sparsity
from tfopt.quantize.frozen import is_quantized
from tfopt.stage import Work

Change = Literal["zeros", "clusters", "channels", "blocks"]


def require_order(work: Work, change: Change, paths: Collection[str] = ()) -> None:
    """Refuses a change of weights that would break what an earlier stage has done.

    Args:
      work: before the stage.
      change: "zeros": weights become zero. "clusters": weights come to share values. "channels": channels go.
        "blocks": residual blocks go.
      paths: of the variables that change, or that go.

    Raises:
      ValueError: names the stages in the order that works.
    """
    if change == "zeros":
        taken = [path for each in work.invariants if isinstance(each, Clustered) for path in each.targets]
        both = sorted(set(taken) & set(paths))
        require(
            not both,
            f"{', '.join(both)} have clusters, to which pruning would add the value zero: put Prune before Cluster",
        )
    if change == "clusters":
        require(
            not is_quantized(work.need_model()),
            "the model is quantization-aware: it was rewritten for weights with many values, whose clusters would not "
            "be clusters of integers in the file. Put Cluster before QuantizeAware",
        )
    if change == "channels":
        require(
            not is_quantized(work.need_model()),
            "the model is quantization-aware, and its ranges are those of the channels it has: put PruneChannels "
            "before QuantizeAware",
        )
        sparse = sorted(path for each in work.invariants if isinstance(each, Sparsity) for path in each.targets)
        require(
            not sparse,
            f"a share of zeros is promised for {', '.join(sparse)}, and what remains of them could have fewer: put "
            "PruneChannels before Prune",
        )
    if change == "blocks":
        require(
            not is_quantized(work.need_model()),
            "the model is quantization-aware, and its ranges are those of the blocks it has: put PruneBlocks before "
            "QuantizeAware",
        )
        promised = {path for each in work.invariants for path in getattr(each, "targets", ())}
        lost = sorted(promised & set(paths))
        require(
            not lost,
            f"something is promised for {', '.join(lost)}, which could go with its block: put PruneBlocks before the "
            "stages that promise it",
        )
