"""The `tracking` section of a recipe: how a run appears in trackers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from posttrain.config.base import AlsoCalled, StrictConfig

Logger = Literal["tensorboard", "wandb", "mlflow", "trackio"]
"""The names of the trackers, which are those of the registry in tracking/views."""

Label = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^\S(.*\S)?$")]


class TrackingConfig(StrictConfig):
    """How a run appears in wandb, mlflow and trackio, and where they keep it.

    `trainer.logger` says which of them a run has, and `posttrain track` fills them afterwards. A
    run's name there is that of its folder.
    """

    project: Annotated[
        str | None,
        AlsoCalled(
            "wandb_project",
            "project_name",
            "experiment_name",
            wandb_name="trainer.run_name",
            wandb_run_name="trainer.run_name",
            trackio_space_id="the environment variable TRACKIO_SPACE_ID",
        ),
    ] = Field(None, max_length=128, pattern=r"^[^/\\#?%:\s]([^/\\#?%:]*[^/\\#?%:\s])?$")
    """W&B's and trackio's project, MLflow's experiment; by default what WANDB_PROJECT,
    MLFLOW_EXPERIMENT_NAME or TRACKIO_PROJECT names, or posttrain."""
    entity: Annotated[Label | None, AlsoCalled("wandb_entity")] = None
    """W&B's user or team; by default that of the key."""
    group: Annotated[Label | None, AlsoCalled("wandb_group", "wandb_run_group")] = None
    """What puts several runs together, such as those of a sweep."""
    tags: Annotated[list[Label], AlsoCalled("wandb_tags")] = Field(default_factory=list)
    """Words to find the run by."""
    mode: Annotated[Literal["online", "offline"] | None, AlsoCalled("wandb_mode")] = None
    """online sends to a server, offline writes into the run's folder. By default wandb is online
    unless WANDB_MODE is offline; mlflow and trackio are offline unless MLFLOW_TRACKING_URI,
    TRACKIO_SERVER_URL or TRACKIO_SPACE_ID names a server."""
