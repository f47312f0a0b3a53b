"""Accuracy and F1 of a classifier.

Loads offline: evaluate.load("recipes/metrics/accuracy_and_f1").
"""

import datasets
import evaluate

DESCRIPTION = """
Accuracy: the share of right answers. F1: the harmonic mean of precision and recall, of class 1
where the classes are 0 and 1, else the plain mean over all classes that occur (macro).
"""

INPUTS = """
Args:
    predictions: the class the model chose, as an integer.
    references: the true class, as an integer.
Returns:
    accuracy, f1: both between 0 and 1. The F1 of a class that is never right is 0.
Example:
    >>> metric = evaluate.load("recipes/metrics/accuracy_and_f1")
    >>> metric.compute(predictions=[0, 1, 1], references=[0, 1, 0])["f1"]
    0.6666666666666666
"""


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, INPUTS)
class AccuracyAndF1(evaluate.Metric):
    """Two columns of class numbers."""

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": number, "references": number}),
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        pairs = list(zip(predictions, references, strict=True))
        classes = sorted(set(predictions) | set(references))
        scored = [1] if set(classes) <= {0, 1} else classes
        return {
            "accuracy": sum(guess == truth for guess, truth in pairs) / len(pairs),
            "f1": sum(f1_of(one, pairs) for one in scored) / len(scored),
        }


def f1_of(one: int, pairs: list[tuple[int, int]]) -> float:
    """F1 of one class against the rest."""
    right = sum(guess == truth == one for guess, truth in pairs)
    named = sum((guess == one) + (truth == one) for guess, truth in pairs)
    return 2 * right / named if named else 0.0
