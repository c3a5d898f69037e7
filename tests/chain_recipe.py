"""Every kind of stage that trains or measures, for several workers and for one device."""

from collections.abc import Sequence

import tfopt


def stages(data_dir: str | None = None) -> Sequence[tfopt.Stage]:
    """The chain.

    Args:
      data_dir: folder of the prepared TFDS sets.
    """
    # Not Adam, which would make noise of rounding where a gradient is near zero, and slowly: at 0.05 what the order of
    # sums changes in the last digit grows to 0.5 % of the loss within 60 steps.
    fit = tfopt.Fit(0.005, "sgd")
    return [
        tfopt.LoadTFDS("digits", data_dir, batch_size=64),
        # Replicas drop other inputs than one device does.
        tfopt.Build(tfopt.models.cnn, {"dropout": 0.0}),
        tfopt.Train(3, fit=fit),
        tfopt.AnalyzeSensitivity(levels=(0.5,), examples=100),
        tfopt.PruneChannels(0.5, criterion="taylor", iterations=2, epochs=1, fit=fit),
        tfopt.Prune(0.5, epochs=2, fit=fit),
        tfopt.Cluster(16, epochs=1, fit=fit),
        tfopt.QuantizeAware(1, fit=fit),
        tfopt.ExportTFLite(calibration_examples=50),
        tfopt.Benchmark(runs=3, warmup=1),
    ]


if __name__ == "__main__":
    tfopt.run_recipe(stages)
