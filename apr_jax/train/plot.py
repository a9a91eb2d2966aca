"""The loss curve of a run, as a picture."""

import io
import pathlib

from apr_jax.files import write_bytes
from apr_jax.train.records import read_records


def plot_losses(records: pathlib.Path, path: pathlib.Path, uniform: float) -> None:
    """Draw the training and held-out losses of `records` against the loss of a uniform guess."""
    steps: dict[str, tuple[list[int], list[float]]] = {"step": ([], []), "eval": ([], [])}
    for record in read_records(records):
        loss = record["train_loss"] if record["kind"] == "step" else record["val_loss"]
        if loss is not None:
            steps[record["kind"]][0].append(record["step"])
            steps[record["kind"]][1].append(loss)
    # Imported here: it would be a fifth of the start of every program.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.axhline(uniform, color="0.5", linestyle="--", label=f"uniform guess, {uniform:.2f}")
    axes.plot(*steps["step"], color="#9ecae1", linewidth=1, label="training batch")
    axes.plot(*steps["eval"], color="#08519c", marker="o", label=_held_out_label(steps["eval"][1]))
    axes.set(xlabel="step", ylabel="loss (nats per token)", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.legend(frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120, metadata={"Software": None})
    write_bytes(path, image.getvalue())


def _held_out_label(losses: list[float]) -> str:
    return f"held out, {losses[0]:.2f} to {losses[-1]:.2f}" if losses else "held out"
