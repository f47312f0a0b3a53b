"""Trackers for --report_to, and the package of each."""

TRACKERS = {
    "tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb", "mlflow": "mlflow",
    "comet_ml": "comet_ml", "clearml": "clearml", "dvclive": "dvclive", "neptune": "neptune",
    "swanlab": "swanlab", "codecarbon": "codecarbon",
}  # fmt: skip
