"""The job on words: how often does a map's strongest word carry the label?"""

import hashlib
import time

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from gmar_utils import trace
from gmar_utils.checkpoint import CHECKPOINTS
from gmar_utils.methods import METHODS, bind

from .. import words
from .work import SEED, compared

OPTIONS = {"gmar-none-paper": {"norm": None}}  # what the head weights of `gmar` buy is the difference between the two
WITHOUT = {"grad-cam", "cdam", "occlusion", "center"}  # no norm in front of attention; pixels; no photographer
LABELS = ["rollout", "gmar-none-paper", *(m for m in METHODS if m not in {"rollout", *WITHOUT}), "left out"]


def method(label):
    """The function of a trace behind a label of the table."""
    return words.left_out if label == "left out" else bind(label.split("-none")[0], **OPTIONS.get(label, {}))


def rows_for(model, tokenizer, given):
    """(image, method, metric, value), a line for each sentence, method and question; `image` is the sentence's number.

    The class asked for is the sentence's true label. [CLS] and [SEP] are no words, and cannot be the strongest one."""
    lines = []
    for at in tqdm(words.by_length(given), disable=None):
        part = [given[i] for i in at]
        seen = trace(model, words.ids_of(tokenizer, part), torch.tensor([s.label for s in part]))
        for label in LABELS:
            order = method(label)(seen)[:, 1:-1].argsort(1, descending=True).tolist()
            for i, sentence, (first, second, *_) in zip(at, part, order, strict=True):
                if sentence.negation is None:
                    lines.append((i, label, "cue", first == sentence.cue))
                else:
                    truth = {sentence.cue, sentence.negation}
                    lines.append((i, label, "cue_or_negation", first in truth))
                    lines.append((i, label, "both", {first, second} == truth))
    rows = pd.DataFrame(lines, columns=["image", "method", "metric", "value"])
    return rows.assign(value=100.0 * rows["value"])


def table(run):
    """How often each method's strongest word is the cue, or the cue or its negation, or the strongest two are both."""
    started, (model, tokenizer) = time.perf_counter(), words.load()
    torch.set_num_threads(1)
    given = words.sentences(run.images(1000), SEED + 2, words.HELD_OUT)
    right, rows = words.accuracy(model, tokenizer, given), rows_for(model, tokenizer, given)
    run.rows("words", rows)
    run.save(
        "words",
        compared(rows, "gmar-none-paper"),
        started=started,
        data="generated sentences, held-out templates",
        images=len(given),
        accuracy=round(right, 2),
        words=float(np.mean([len(s.words) for s in given]).round(2)),
        model=words.NAME,
        weights_sha256=hashlib.sha256((CHECKPOINTS / words.NAME / "model.safetensors").read_bytes()).hexdigest(),
    )
