"""A tokenizer of whole words, for the small models of texts that this project trains itself."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast


def word_tokenizer(tokens: Sequence[str], first: str, last: str) -> PreTrainedTokenizerFast:
    """One token a word, numbered as in `tokens`, which hold [PAD], [UNK] and the two that stand around every text.

    Args:
        tokens: every token, in the order of their numbers.
        first, last: what begins and ends a text: "cls" for [CLS], "sep" for [SEP], "bos" for [BOS], "eos" for [EOS].
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    numbers, around = {w: i for i, w in enumerate(tokens)}, [f"[{kind.upper()}]" for kind in (first, last)]
    made = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single=f"{around[0]} $A {around[1]}", special_tokens=[(t, numbers[t]) for t in around]
    )
    special = {f"{kind}_token": f"[{kind.upper()}]" for kind in ("pad", "unk", first, last)}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)
