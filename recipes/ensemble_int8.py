"""Several networks, one student: an ensemble of seeds or snapshots, distilled into one small model, in int8.

python -m recipes.ensemble_int8 --dataset=fashion_mnist --data_dir=~/tensorflow_datasets
python -m recipes.ensemble_int8 --snapshots --members=5 --epochs=6
"""

from collections.abc import Sequence

import tfopt


def stages(
    dataset: str = "digits",
    data_dir: str | None = None,
    members: int = 3,
    snapshots: bool = False,
    geometric: bool = False,
    epochs: int = 10,
    student_epochs: int = 20,
    filters: int = 64,
    student_filters: int = 64,
    temperature: float = 2.0,
    alpha: float = 0.7,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
) -> Sequence[tfopt.Stage]:
    """The chain.

    Args:
      dataset: any TFDS image classification set; "digits" ships with the dependencies.
      data_dir: folder of the prepared TFDS sets.
      members: how many.
      snapshots: whether they are turning points of one training, and not trained each by itself.
      geometric: whether the mean of their logits is taken, and not that of their probabilities.
      epochs: of each member.
      student_epochs: of the student, which learns from all of them.
      filters: of every convolution of a member, a DS-CNN.
      student_filters: the same, of the student.
      temperature: softens what the members say.
      alpha: what they count beside the labels.
      batch_size: examples a training step.
      learning_rate: highest learning rate; it falls along a cosine, for each member anew.
    """
    fit = tfopt.Fit(tfopt.Cosine(learning_rate))
    kind = tfopt.ensemble.Snapshots(members) if snapshots else tfopt.ensemble.Seeds(members)
    return [
        tfopt.LoadTFDS(dataset, data_dir, batch_size=batch_size),
        tfopt.Build(tfopt.models.ds_cnn, {"filters": filters}),
        tfopt.ensemble.Ensemble(kind, "geometric" if geometric else "mean", epochs, fit),
        tfopt.ensemble.DistillInto(
            tfopt.models.ds_cnn, {"filters": student_filters}, student_epochs, temperature, alpha, fit=fit
        ),
        tfopt.ExportTFLite(),
        tfopt.Benchmark(),
    ]


if __name__ == "__main__":
    tfopt.run_recipe(stages)
