"""What TRL's preference methods and RL share: a reference that follows the policy."""

from __future__ import annotations

from posttrain.imports.draft import Draft
from posttrain.imports.parts import (
    truth,
)


def following(draft: Draft) -> None:
    """Write a reference that follows the policy."""
    if truth(draft.get("sync_ref_model", default=False)):
        draft.copy("reference.sync_steps", "ref_model_sync_steps", default=512, convert=int)
        draft.copy("reference.sync_alpha", "ref_model_mixup_alpha", default=0.6, convert=float)
        draft.put("reference.sync_steps", draft.recipe["reference.sync_steps"], "sync_ref_model")
    draft.skip("the reference does not move", "sync_ref_model", "ref_model_*")
    draft.skip("dropout is off in preference methods and RL", "disable_dropout")
