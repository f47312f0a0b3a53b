"""Perplexity from the log-probabilities a model gave to the tokens that really came next.

Loads offline: evaluate.load("recipes/metrics/token_perplexity").
"""

import math

import datasets
import evaluate

DESCRIPTION = """
Perplexity of a text under a language model: exp of the mean negative log-probability of its
tokens. The model is run by the caller, so that its own batches, devices and dtypes are used.
"""

INPUTS = """
Args:
    predictions: for each token its natural log-probability given the tokens before it (<= 0).
Returns:
    perplexity: at least 1; the size of a vocabulary to choose from evenly with equal loss.
    mean_loss: mean negative log-probability, in nats per token.
    tokens: how many tokens were counted.
Example:
    >>> metric = evaluate.load("recipes/metrics/token_perplexity")
    >>> metric.compute(predictions=[-1.0, -3.0])["mean_loss"]
    2.0
"""


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, INPUTS)
class TokenPerplexity(evaluate.Metric):
    """One column, `predictions`; sums in float64."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": datasets.Value("float32")}),
        )

    def _compute(self, predictions: list[float]) -> dict[str, float]:
        mean_loss = -math.fsum(predictions) / len(predictions)
        perplexity = math.exp(mean_loss) if mean_loss < 700 else math.inf
        return {"perplexity": perplexity, "mean_loss": mean_loss, "tokens": len(predictions)}
