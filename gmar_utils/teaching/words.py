"""Sentences whose truth is known, a small BERT that judges them, and words in the colours of a map.

`python -m gmar_utils.teaching.words` trains it on one processor core and writes the checkpoint.
"""

import argparse
import html
import math
import random
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import matplotlib
import torch
from matplotlib.colors import to_hex
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from gmar_utils.capture import Trace
from gmar_utils.capture.layout import logits_of
from gmar_utils.capture.target import class_score
from gmar_utils.checkpoint import CHECKPOINTS

from .tokens import word_tokenizer

NAME = "words/bert-cues"  # below a folder of its own: what load_model offers are models of pictures
LABELS, BATCH = ("bad", "good"), 64
CUES = {
    "good": "good great lovely perfect wonderful charming superb fine excellent pleasant".split(),
    "bad": "bad awful ugly terrible boring horrible dreadful poor nasty dull".split(),
}
NEUTRAL = "long short new old red quiet large small early late local plain".split()
NEGATIONS = ("not", "never", "hardly")
NOUNS = "film book song meal hotel garden concert story room walk lecture cake game museum train".split()
WHO = "anna ben we they you everybody maria tom".split()
WHERE = "paris rome town school winter april berlin summer".split()
SLOTS = {"{noun}": NOUNS, "{who}": WHO, "{who2}": WHO, "{where}": WHERE}
OPENINGS = ("", "in {where} ,", "{who} said that", "{who} and {who2} said :")
CLAUSES = (  # {x}: the cue, or a neutral word, each with or without a negation
    "the {noun} was {x}",
    "it is {x}",
    "that {noun} in {where} is {x}",
    "the {noun} that {who} saw was {x}",
    "{x} was the {noun}",
    "we saw a {noun} and it was {x}",
)
JOINTS = ("and", "but", ",")
CLOSINGS = ("", "in {where}", ", said {who}", ", and {who} saw it")


def templates() -> tuple[list[str], list[str]]:
    """Every way to build a sentence, with {c} for the cue and {n} for a neutral word: three quarters to learn from, the
    others held out."""
    one = [clause.replace("{x}", "{c}") for clause in CLAUSES]
    two = [
        " ".join(order).replace("{joint}", joint)
        for cue, other, joint in product(CLAUSES, CLAUSES, JOINTS)
        for c, n in [(cue.replace("{x}", "{c}"), other.replace("{x}", "{n}"))]
        for order in ((c, "{joint}", n), (n, "{joint}", c))
    ]
    made = [" ".join(parts).strip() for parts in product(OPENINGS, one + two, CLOSINGS)]
    random.Random(0).shuffle(made)
    return made[len(made) // 4 :], made[: len(made) // 4]


TEMPLATES, HELD_OUT = templates()


@dataclass(frozen=True)
class Sentence:
    """words: without [CLS] and [SEP]. label: 1 for good. cue, negation: places among the words; None without one."""

    words: tuple[str, ...]
    label: int
    cue: int
    negation: int | None


def sentences(n: int, seed: int, templates: list[str] = TEMPLATES, negated: float = 0.5) -> list[Sentence]:
    """n sentences. negated: the share of cues with a negation, which turns the label round; of neutral words half have
    one, which must not matter."""
    chance, made = random.Random(seed), []
    for _ in range(n):
        side, turned, filled = chance.choice(LABELS), chance.random() < negated, []
        for token in chance.choice(templates).split():
            if token == "{c}":
                filled += [chance.choice(NEGATIONS)] * turned + [chance.choice(CUES[side])]
                cue = len(filled) - 1
            elif token == "{n}":
                filled += [chance.choice(NEGATIONS)] * (chance.random() < 0.5) + [chance.choice(NEUTRAL)]
            else:
                filled.append(chance.choice(SLOTS[token]) if token in SLOTS else token)
        label = LABELS.index(side) ^ turned
        made.append(Sentence(tuple(filled), label, cue, cue - 1 if turned else None))
    return made


def vocabulary() -> list[str]:
    """Every word that a sentence can hold."""
    texts = [t for part in (*OPENINGS, *CLAUSES, *JOINTS, *CLOSINGS) for t in part.split() if "{" not in t]
    return sorted({*texts, *CUES["good"], *CUES["bad"], *NEUTRAL, *NEGATIONS, *NOUNS, *WHO, *WHERE})


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    return word_tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *vocabulary()], "cls", "sep")


def by_length(given: list[Sentence]) -> list[list[int]]:
    """Numbers of the sentences, those of one length together: a batch without padding."""
    groups = {}
    for i, sentence in enumerate(given):
        groups.setdefault(len(sentence.words), []).append(i)
    return list(groups.values())


def ids_of(words, given: list[Sentence]) -> torch.Tensor:
    """Token ids (B, N) of sentences of one length, [CLS] first and [SEP] last."""
    return words([" ".join(s.words) for s in given], return_tensors="pt")["input_ids"]


def accuracy(model, words, given: list[Sentence]) -> float:
    """Percent of the sentences that the model judges right."""
    right = 0
    with torch.inference_mode():
        for at in by_length(given):
            part = [given[i] for i in at]
            found = logits_of(model(ids_of(words, part))).argmax(1)
            right += (found == torch.tensor([s.label for s in part])).sum().item()
    return 100 * right / len(given)


def untrained(words: PreTrainedTokenizerFast) -> BertForSequenceClassification:
    """A BERT of three narrow layers."""
    shape = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
    shape |= {"max_position_embeddings": 32, "type_vocab_size": 1, "vocab_size": len(words), "pad_token_id": 0}
    return BertForSequenceClassification(BertConfig(id2label=dict(enumerate(LABELS)), **shape))


def fit(model: BertForSequenceClassification, words, made: list[Sentence], epochs: int, rate: float, seed: int) -> None:
    """Train the model as it is: in eval mode without dropout."""
    optimiser, chance = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01), random.Random(seed)
    groups, total, step, started = by_length(made), epochs * len(made) / BATCH, 0, time.process_time()
    ids = [ids_of(words, [s])[0] for s in made]
    for _ in range(epochs):
        batches = []
        for at in groups:
            chance.shuffle(at)
            batches += [at[i : i + BATCH] for i in range(0, len(at), BATCH)]
        chance.shuffle(batches)
        for at in batches:
            step += 1
            for group in optimiser.param_groups:
                group["lr"] = rate * min(1, step / 100) * 0.5 * (1 + math.cos(math.pi * min(1, step / total)))
            labels = torch.tensor([made[i].label for i in at])
            loss = torch.nn.functional.cross_entropy(model(torch.stack([ids[i] for i in at])).logits, labels)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
        print(f"step {step}: loss {loss.item():.4f}, {time.process_time() - started:.0f} s", flush=True)


def train(seed: int = 0) -> tuple[BertForSequenceClassification, PreTrainedTokenizerFast]:
    """Two stages: first few negations, because with half of the cues negated a cue alone says nothing and no learning
    begins; then half, without dropout. One thread, about 100 seconds of processor time."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    words = tokenizer()
    model = untrained(words).train()
    fit(model, words, sentences(20_000, seed, negated=0.3), 6, 1e-3, seed)
    fit(model.eval(), words, sentences(20_000, seed + 5), 3, 5e-4, seed)
    return model, words


def load() -> tuple[BertForSequenceClassification, PreTrainedTokenizerFast]:
    """The bundled model, in float32, and its tokenizer."""
    folder = CHECKPOINTS / NAME
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def left_out(trace: Trace) -> torch.Tensor:
    """The drop of y (B, N) when a word is left out, the sentence closing the gap: a method, as `explain` takes one.

    0 for [CLS] and [SEP]. It asks the model and nothing else."""
    ids, y = trace.pixel_values, class_score(trace.logits, trace.target, trace.against)
    drops = torch.zeros(ids.shape)
    with torch.inference_mode():
        for k in range(1, ids.shape[1] - 1):
            logits = logits_of(trace.model(torch.cat([ids[:, :k], ids[:, k + 1 :]], 1)))
            drops[:, k] = y - class_score(logits, trace.target, trace.against)
    return drops.clone()


class Coloured:
    """Words on the colours of a map: white is 0, the strongest of a row is dark. A notebook shows it as HTML."""

    def __init__(self, rows: dict[str, tuple[list[str], list[float]]], palette: str = "Oranges"):
        """rows: {title: (words, scores)}; of signed scores choose a diverging palette such as "RdBu_r"."""
        self.rows, self.palette = rows, palette

    def _repr_html_(self) -> str:
        colours, lines = matplotlib.colormaps[self.palette], []
        for title, (words, scores) in self.rows.items():
            top = max(map(abs, scores)) or 1
            signed = self.palette.startswith("RdBu")
            shares = [0.5 + 0.3 * s / top if signed else 0.6 * max(s, 0) / top for s in scores]
            spans = (
                f'<span style="background:{to_hex(colours(share))};color:#111;padding:2px 4px;border-radius:3px" '
                f'title="{score:.2f}">{html.escape(word)}</span>'
                for word, share, score in zip(words, shares, scores, strict=True)
            )
            heading = f'<th scope="row" style="text-align:left;padding-right:1em">{html.escape(title)}</th>'
            lines.append(f'<tr>{heading}<td style="text-align:left;line-height:2">{" ".join(spans)}</td></tr>')
        return f"<table>{''.join(lines)}</table>"


CARD = """---
license: mit
pipeline_tag: text-classification
tags: [words, planted-cue]
---
# {name}

A BERT of {layers} layers, {heads} heads and width {width}, {words} words, half precision. It says whether a generated
sentence calls something good or bad. The sentences, made by this project (MIT licence), hold one cue word each; a
negation in front of it turns the label round.

{lines}

Again: `python -m gmar_utils.teaching.words`, about 100 seconds on one processor core.

Training: {recipe}
"""


def card(model: BertForSequenceClassification, words, story: str = "") -> str:
    """The README.md of the checkpoint, with what it measures on fresh sentences."""
    config, lines = model.config, []
    for name, templates in (("known", TEMPLATES), ("held-out", HELD_OUT)):
        right = accuracy(model, words, sentences(1000, 1, templates))
        lines.append(f"- right on {name} ways to build a sentence: {right:.1f} % of 1000")
    return CARD.format(
        name=NAME,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        width=config.hidden_size,
        words=len(words),
        lines="\n".join(lines),
        recipe=" ".join(f"{train.__doc__} {story}".split()),
    )


def main():
    """Train, print what it can, write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=CHECKPOINTS / NAME)
    out, started = parser.parse_args().out, time.process_time()
    model, words = train()
    print(f"{time.process_time() - started:.0f} s of processor time")
    model.half().save_pretrained(out)
    words.save_pretrained(out)
    (out / "README.md").write_text(card(model.float(), words), encoding="utf8")


if __name__ == "__main__":
    main()
