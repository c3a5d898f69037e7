"""Reports for the tests, ordinary and strange ones, and a reader of their pages."""

import functools
import html
import html.parser

import numpy as np

from tfopt.measure import score
from tfopt.report import (
    Report,
    StageEntry,
)
from tfopt.report import html as page

ENVIRONMENT = {
    "versions": {"python": "3.11.7", "tensorflow": "2.21.0", "keras": "3.15.1", "ai-edge-litert": "2.3.0"},
    "cpu": "Intel(R) Xeon(R) CPU @ 2.80GHz",
    "threads": 2,
    "platform": "Linux-6.1.0-x86_64",
}
WEIRD = '<b>x</b> & "q" $a_1$ | `c` \n #0072b2 id="z 層 </script><script>alert(1)</script> http://a.b/c.png'


def digits() -> Report:
    """An int8 chain as of the digits recipe, with invented figures."""
    kernels = ["conv/kernel", "conv_1/kernel", "dense/kernel", "dense_1/kernel"]
    return Report(
        recipe="digits_int8",
        environment=ENVIRONMENT,
        stages=(
            StageEntry(
                "Train",
                "Train(epochs=6, optimizer='adam', learning_rate=0.001, jit_compile=False)",
                14.2,
                metrics={
                    "before": {"accuracy": 0.0972, "loss": 2.31},
                    "after": {"accuracy": 0.9833, "loss": 0.061},
                },
                changed=["conv", "conv_1", "dense", "dense_1"],
                history={
                    "loss": [1.31, 0.42, 0.21, 0.12, 0.085, 0.061],
                    "val_loss": [0.71, 0.33, 0.19, 0.14, 0.11, 0.096],
                    "accuracy": [0.61, 0.88, 0.94, 0.965, 0.976, 0.984],
                    "val_accuracy": [0.80, 0.91, 0.95, 0.962, 0.972, 0.979],
                },
            ),
            StageEntry(
                "Prune",
                "Prune(final_sparsity=0.8, begin_step=0, end_step=184, frequency=10, pattern='unstructured')",
                11.8,
                metrics={
                    "before": {"accuracy": 0.9833, "loss": 0.061},
                    "after": {"accuracy": 0.9806, "loss": 0.072},
                },
                changed=["conv_1", "dense"],
                skipped=[
                    {"layer": "conv", "reason": "first layer: 72 weights, too few to gain from pruning"},
                    {"layer": "batch_normalization", "reason": "no kernel"},
                ],
                invariants=[{"invariant": "Sparsity(0.8)", "holds": True, "detail": "0.8000 over 2 kernels"}],
                history={
                    "loss": [0.31, 0.19, 0.11, 0.072],
                    "val_loss": [0.26, 0.18, 0.13, 0.11],
                    "accuracy": [0.90, 0.94, 0.967, 0.979],
                    "val_accuracy": [0.92, 0.945, 0.963, 0.974],
                },
                sparsity=dict(zip(kernels, [0.0, 0.8, 0.8, 0.0], strict=True)),
                notes=["Two of four kernels hold 96 % of the weights."],
            ),
            StageEntry(
                "ExportTFLite",
                "ExportTFLite(quantization='int8', float_io=False)",
                3.4,
                metrics={"before": {"accuracy": 0.9806}, "after": {"accuracy": 0.9806}},
                invariants=[{"invariant": "Sparsity(0.8)", "holds": True, "detail": "0.801 in the flatbuffer"}],
            ),
        ),
        chain=(
            _row("Train (float32)", 0.9833, 48912, 44100, 0.0213, 0.0219, 0.0),
            _row("Prune (float32)", 0.9806, 48912, 13900, 0.0215, 0.0221, 0.8),
            _row("ExportTFLite (int8)", 0.9806, 15208, 5120, 0.0109, 0.0113, 0.801),
        ),
        artefacts={
            "tflite": {
                "path": "model.tflite",
                "bytes": 15208,
                "gzip_bytes": 5120,
                "zstd_bytes": 5011,
                "ops": {"CONV_2D": 2, "FULLY_CONNECTED": 2, "MAX_POOL_2D": 1, "RESHAPE": 1},
                "float_ops": 0,
                "flex_ops": [],
                "accuracy": 0.9806,
                "parity": {
                    "argmax_agreement": 0.9972,
                    "max_lsb": 3,
                    "mean_lsb": 0.21,
                    "first_divergent": None,
                },
                "latency": {
                    "median_ms": 0.0109,
                    "p90_ms": 0.0113,
                    "runtime": "LiteRT 2.3.0",
                    "threads": 1,
                    "cpu": "Intel(R) Xeon(R) CPU @ 2.80GHz",
                },
            }
        },
    )


def _row(variant, accuracy, size, packed, median, p90, sparsity):
    return {
        "variant": variant,
        "accuracy": accuracy,
        "bytes": size,
        "gzip_bytes": packed,
        "zstd_bytes": packed,
        "median_ms": median,
        "p90_ms": p90,
        "sparsity": sparsity,
    }


def one_row() -> Report:
    whole = digits()
    return Report("float_only", ENVIRONMENT, whole.stages[:1], whole.chain[:1])


def unmeasured() -> Report:
    return Report("nothing", ENVIRONMENT, (StageEntry("Train", "Train(epochs=1)", 0.4),))


def weird() -> Report:
    entry = StageEntry(
        WEIRD,
        WEIRD,
        1.0,
        metrics={"before": {WEIRD: 1}, "after": {WEIRD: np.float32("inf")}},
        changed=[WEIRD],
        skipped=[{"layer": WEIRD, "reason": WEIRD}],
        invariants=[{"invariant": WEIRD, "holds": False, "detail": WEIRD}],
        history={"loss": [float("nan"), 1.0], "accuracy": [0.1, float("nan")]},
        sparsity={WEIRD: 0.5},
        notes=[WEIRD],
    )
    chain = [_row(WEIRD, 0.9, 10, 5, 1.0, 1.1, 0.0), _row(WEIRD + "2", 0.8, 5, 4, 1.0, 1.1, 0.5)]
    artefacts = {WEIRD: {"path": "javascript:alert(1)", "ops": {WEIRD: 1}}, "note": WEIRD}
    return Report(WEIRD, {"cpu": WEIRD, "versions": {WEIRD: WEIRD}}, (entry,), tuple(chain), artefacts)


def large() -> Report:
    names = [f"backbone/stage_{index // 10}/block_{index}/depthwise_conv" for index in range(200)]
    entry = StageEntry(
        "Prune",
        "Prune(final_sparsity=0.75)",
        95.0,
        changed=names,
        skipped=[{"layer": f"{name}_bn", "reason": "no kernel"} for name in names],
        invariants=[{"invariant": "Sparsity(0.75)", "holds": False, "detail": "0.71 in the last kernel"}],
        history={"loss": list(np.geomspace(3, 0.1, 100))},
        sparsity={f"{name}/kernel": 0.75 for name in names},
    )
    chain = tuple(
        _row(
            f"variant {index}",
            None if index == 3 else 0.9 - index / 500,
            10**7 // (index + 1),
            None,
            3.0 + index,
            None,
            None,
        )
        for index in range(8)
    )
    return Report("large", ENVIRONMENT, (entry,), chain)


def classified() -> Report:
    """A classifier of three classes with strange names, and its file, which never decides for the last."""
    labels = np.arange(60) % 3
    outputs = np.eye(3)[np.where(np.arange(60) < 50, labels, (labels + 1) % 3)]
    blind = outputs * [1, 1, 0] + [0.01, 0.02, 0]
    found = {
        key: score("multi-class", labels, each, class_names=("cat", "dog", WEIRD), resamples=100).to_report()
        for key, each in (("keras", outputs), ("tflite", blind))
    }
    return Report("classified", ENVIRONMENT, artefacts={"tflite": {"path": "model.tflite", "metrics": found}})


def crowded() -> Report:
    """A classifier of 100 classes, two of them without labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 98, 1000)
    outputs = rng.normal(0, 1, (1000, 100))
    outputs[np.arange(1000), labels] += 4
    names = [f"class {number}" for number in range(100)]
    found = score("multi-class", labels, outputs, class_names=names, resamples=20).to_report()
    return Report("crowded", ENVIRONMENT, artefacts={"tflite": {"metrics": {"keras": found}}})


def regressed() -> Report:
    """A model of numbers, one of which is zero."""
    targets = np.linspace(0, 1, 50)
    found = score("regression", targets, targets**2, resamples=100).to_report()
    return Report("regressed", ENVIRONMENT, artefacts={"tflite": {"metrics": {"tflite": found}}})


SAMPLES = {each.__name__: each for each in (digits, one_row, unmeasured, weird, large, classified, crowded, regressed)}


@functools.cache
def html_of(name: str) -> str:
    return page.render(SAMPLES[name]())


class Page(html.parser.HTMLParser):
    """Elements, texts and links of a page; fails on elements that are not closed in order."""

    VOID = ("meta", "link", "br")

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
