"""Checkpoints to resume a run from, kept by orbax: the whole state and what the run had found."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from apr_jax.files import WriteError
from apr_jax.train.config import TrainError
from apr_jax.train.step import TrainState

_KEEP = 2


class Checkpoints:
    """The checkpoints of one run folder. A save that is killed leaves the one before."""

    def __init__(self, folder: pathlib.Path) -> None:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=_KEEP, create=True, enable_async_checkpointing=False
        )
        self._folder = folder
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, found: dict[str, Any]) -> None:
        """Save the state after `step` updates, and `found`: JSON that the report will need.

        Raises:
          WriteError: the disk is full, or refuses.
        """
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), found=ocp.args.JsonSave(found)
        )
        try:
            self._manager.save(step, args=args)
        except (OSError, ValueError, RuntimeError) as error:  # tensorstore raises all three
            reason = str(error).splitlines()[0][:200]
            raise WriteError(
                f"{self._folder}: the checkpoint of step {step} cannot be written ({reason}); make "
                "room and give the same command again"
            ) from error

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state and findings saved at `step`, placed on devices as `like` is.

        Raises:
          TrainError: the checkpoint is damaged.
        """
        wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(wanted), found=ocp.args.JsonRestore()
        )
        try:
            restored = self._manager.restore(step, args=args)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise TrainError(
                f"{self._folder / str(step)}: the checkpoint is damaged; remove that folder and "
                "give the same command again, to go on from the one before or from the start"
            ) from error
        return restored["state"], restored["found"]

    def close(self) -> None:
        """Wait for writes and release the folder."""
        self._manager.close()
