"""The model card of a checkpoint that this module trained, with results that the hub can read."""

import pandas as pd
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PretrainedConfig

from ..evaluation.provenance import made_by, shown

TERMS = {
    "tiny-imagenet": "Training pictures: Tiny-ImageNet, part of ImageNet, which gives its pictures for non-commercial "
    "research and education. Its terms apply to what is made from them.",
    "shapes": "Training pictures: drawn by this project (MIT licence).",
}
DATASETS = {"tiny-imagenet": ("zh-plus/tiny-imagenet", "Tiny-ImageNet"), "shapes": ("shapes", "Generated shapes")}


def model_card(
    name: str,
    config: PretrainedConfig,
    recipe: dict[str, object],
    found: dict[str, dict[str, float]],
    history: dict[str, object] | None = None,
) -> ModelCard:
    """The README.md of a checkpoint.

    Args:
        name: The checkpoint's.
        config: The model's.
        recipe: Its entries.
        found: {what was measured: {name: number}}.
        history: What `state.read` says of the training, where it is known.

    Returns:
        The card: metadata with an accuracy for each entry of ``found``, then the text.
    """
    made, trained_on = made_by(), recipe["data"]
    terms, own = TERMS[trained_on], isinstance(recipe["init"], dict)
    if not own:
        terms += f" The training began with the weights of {shown(recipe['init'])}, whose terms apply too."
    parts = {
        "Accuracy": _table([{"measured on": k, **v} for k, v in found.items()])
        + f"\n\nOf the weights in this folder, in percent. Again: `gmar finetune --measure {name}`.",
        "Recipe": _table([{"entry": k, "value": shown(str(v))} for k, v in recipe.items()]),
    }
    if history:
        parts["Training"] = _training(history, recipe["batch_size"])
    made_with = {k: made[k] for k in ("commit", "date", "device")} | made["packages"]
    parts["Made with"] = _table([{"what": k, "value": v} for k, v in made_with.items()])
    parts["Licence"] = terms
    text = (
        f"# {name}\n\n{config.model_type}, {config.image_size} px in patches of {config.patch_size} px, "
        f"{config.num_hidden_layers} layers, {config.num_attention_heads} heads, width {config.hidden_size}, "
        f"{config.num_labels} classes, half precision. Trained on {trained_on}.\n"
    ) + "".join(f"\n## {title}\n\n{part}\n" for title, part in parts.items())
    metadata = ModelCardData(
        license="mit" if own and trained_on == "shapes" else "other",
        pipeline_tag="image-classification",
        library_name="transformers",
        tags=["vision-transformer", trained_on],
        model_name=name,
        eval_results=_results(trained_on, found),
    )
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n{text}")


def _results(trained_on, found):
    kind, title = DATASETS[trained_on]
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=kind,
            dataset_name=title,
            dataset_config=what,  # the hub shows one result for each data set and configuration
            dataset_split="validation",
            metric_type="accuracy",
            metric_name="top-1 accuracy, percent",
            metric_value=numbers["top1"],
        )
        for what, numbers in found.items()
    ]


def _training(history, batch_size):
    """Images seen, what decided the weights beside the recipe, and about a dozen rows of the log."""
    known, step = history["settings"], history["step"]
    rows = [_row(row, batch_size) for row in history["log"]]
    watched = [row for row in rows if "watched top1" in row]
    rows = watched if len(watched) > 2 else rows
    return (
        f"{step * batch_size:,} images seen in {step:,} steps. {known['training pictures'][0]:,} training pictures; "
        f"SHA-256 of the starting weights: `{known['starting weights']}`; {known['processes']} process(es), autocast: "
        f"{known['precision']}.\n\n{_table(rows[:: max(1, len(rows) // 12)][:-1] + rows[-1:])}\n\n"
        "What is watched are pictures that the training did not see; nothing was chosen by them."
    )


def _row(row, batch_size):
    watched = {f"watched {k}": v for k, v in row.get("watch", {}).items()}
    seen = {"step": row["step"], "images seen": row["step"] * batch_size}
    return seen | {k: v for k, v in row.items() if k != "watch"} | watched


def _table(rows):
    table = pd.DataFrame(rows, dtype=object)
    return table.where(table.notna(), "").to_markdown(index=False, disable_numparse=True)  # fillna makes 52 a 52.0
