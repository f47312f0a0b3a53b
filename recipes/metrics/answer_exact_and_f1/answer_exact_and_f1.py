"""Exact match and F1 of answers to questions about a text, as SQuAD 1.1 counts them.

Loads offline: evaluate.load("recipes/metrics/answer_exact_and_f1").
"""

import re
import string
from collections import Counter

import datasets
import evaluate

DESCRIPTION = """
Answers are compared in lower case, without punctuation, articles (a, an, the) and extra spaces.
Exact match: the share of answers that equal one of the true ones. F1: the harmonic mean of
precision and recall of the words, with the true answer that gives most, averaged over questions.
"""

INPUTS = """
Args:
    predictions: for each question the answer, a string.
    references: for each question all true answers, a list of strings.
Returns:
    exact_match, f1: percentages.
Example:
    >>> metric = evaluate.load("recipes/metrics/answer_exact_and_f1")
    >>> metric.compute(predictions=["in Paris"], references=[["Paris", "the city"]])["exact_match"]
    0.0
"""


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, INPUTS)
class AnswerExactAndF1(evaluate.Metric):
    """A column of answers and one of lists of true answers."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": text, "references": datasets.List(text)}),
        )

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        pairs = list(zip(predictions, references, strict=True))
        exact = sum(any(words(p) == words(r) for r in known) for p, known in pairs)
        overlap = sum(max(f1_of(words(p), words(r)) for r in known) for p, known in pairs)
        return {
            "exact_match": 100.0 * exact / len(pairs),
            "f1": 100.0 * overlap / len(pairs),
        }


def words(answer: str) -> list[str]:
    """The words that count."""
    plain = "".join(letter for letter in answer.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def f1_of(found: list[str], true: list[str]) -> float:
    """F1 of the words of one answer; two empty answers agree."""
    if not found or not true:
        return float(found == true)
    shared = sum((Counter(found) & Counter(true)).values())
    return 2 * shared / (len(found) + len(true))
