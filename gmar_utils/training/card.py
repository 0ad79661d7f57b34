"""The model card of a checkpoint that this module trained."""

from ..evaluation.provenance import provenance, shown

TERMS = {
    "tiny-imagenet": "Training pictures: Tiny-ImageNet, part of ImageNet, which gives its pictures for non-commercial "
    "research and education. Its terms apply to what is made from them.",
    "shapes": "Training pictures: drawn by this project (MIT licence).",
}


def model_card(name, config, recipe, found, log, story=""):
    """The README.md of a checkpoint called ``name``.

    config  the model's; recipe  dict of its entries; found  {what was measured: {name: number}}
    log     rows of the training log; story  what the recipe does not say
    """
    recipe, made, trained_on = {k: shown(str(v)) for k, v in recipe.items()}, provenance(), recipe["data"]
    terms, free = TERMS[trained_on], trained_on == "shapes"
    if not recipe["init"].startswith("{"):
        free = False
        terms += f" The training began with the weights of {recipe['init']}, whose terms apply too."
        if recipe["init"] == "vit-tiny-imagenet" and trained_on == "shapes":
            terms += f" {TERMS['tiny-imagenet']}"
    log = [row | {"watch_top1": row["watch"]["top1"]} if "watch" in row else row for row in log]
    log = log[:: max(1, len(log) // 12)][:-1] + log[-1:]
    columns = ("step", "px", "loss", "running_top1", "watch_top1", "images_per_s")
    versions = {k: made["packages"][k] for k in ("torch", "transformers", "accelerate")}
    parts = {
        "Accuracy": _table(("measured on", *next(iter(found.values()))), [(k, *v.values()) for k, v in found.items()]),
        "Recipe": _table(("entry", "value"), recipe.items()),
        "Log": _table(columns, [[row.get(k, "") for k in columns] for row in log]),
        "Made with": _table(("", ""), [(k, made[k]) for k in ("commit", "date", "device")] + list(versions.items())),
        "Licence": terms,
    }
    parts["Accuracy"] += f"\n\nOf the weights in this folder, in percent. Again: `gmar finetune --measure {name}`."
    parts["Recipe"] += f"\n\n{story}" if story else ""
    return (
        f"---\nlicense: {'mit' if free else 'other'}\npipeline_tag: image-classification\n"
        f"tags: [vision-transformer, {trained_on}]\n---\n# {name}\n\n{config.model_type}, {config.image_size} px in "
        f"patches of {config.patch_size} px, {config.num_hidden_layers} layers, {config.num_attention_heads} heads, "
        f"width {config.hidden_size}, {config.num_labels} classes, half precision. Trained on {trained_on}.\n"
    ) + "".join(f"\n## {title}\n\n{text}\n" for title, text in parts.items())


def _table(head, rows):
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows))
