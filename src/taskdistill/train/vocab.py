"""A vocabulary of its own for a student.

Pieces joined by byte-pair merges, cut by a unigram model, learned from the texts that it will read.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from math import log

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from taskdistill.errors import WorkFailed
from taskdistill.model.tokenizer import TextTokenizer

UNKNOWN = "[UNK]"
LONGEST_PIECE = 16
"""Characters of a piece, at most: a longer one is a word that few texts share."""
UNSPACED = (r"\p{Han}+", r"\p{Hiragana}+", r"[\p{Katakana}\u30fc]+")
"""Runs of letters of scripts without spaces; none is joined to its neighbours, as a noun to the
particle behind it would be."""
UNSEEN = 0.1
"""Occurrences that a piece counts for which only served to join others."""
CHUNK = 10_000
SHORTEST_WORD = 3
"""Letters of a word that is taken over from another vocabulary, at least: shorter ones would cut
words of other languages."""
WORD_MARKS = ("\u2581", "\u0120")
"""What begins a word in the vocabularies that mark words rather than the rest of them."""


def learn_vocabulary(texts: Sequence[str], size: int) -> Tokenizer:
    """Learn pieces from texts of any languages and scripts.

    Texts are brought to NFKC and to lower case, words are marked by the space before them, and
    punctuation stands alone. What occurs most often side by side is joined first, so that frequent
    words are one piece (the library's trainer of unigram models cuts many of them, docs/log.md). A
    text is then cut where the pieces' frequencies make it most probable, which needs fewer pieces
    than the merges in their order. In Chinese and Japanese runs of one script stand for words.
    Returns a tokenizer that adds no special tokens; its unknown token is the first id. Raises
    WorkFailed if the texts have no characters to learn from.
    """
    joined = _without_special_tokens(Tokenizer(models.BPE(unk_token=UNKNOWN)))
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[UNKNOWN],
        limit_alphabet=size // 2,
        max_token_length=LONGEST_PIECE,
        show_progress=False,
    )
    joined.train_from_iterator(texts, trainer)
    if joined.get_vocab_size() < 2:
        raise WorkFailed(
            f"no vocabulary of {size:,} pieces could be learned from {len(texts):,} texts: they "
            "have no letters"
        )
    counts: Counter[int] = Counter()
    for start in range(0, len(texts), CHUNK):
        for cut in joined.encode_batch(texts[start : start + CHUNK]):
            counts.update(cut.ids)
    total = sum(counts.values())
    pieces = sorted(vocabulary := joined.get_vocab(), key=vocabulary.__getitem__)
    scores = [0.0, *(log((counts[number] or UNSEEN) / total) for number in range(1, len(pieces)))]
    return _without_special_tokens(
        Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=0))
    )


def _without_special_tokens(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    scripts = [pre_tokenizers.Split(Regex(script), "isolated") for script in UNSPACED]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation(), *scripts]
    )
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def with_special_tokens(learned: Tokenizer, old: TextTokenizer) -> Tokenizer:
    """Let a learned vocabulary begin and end texts with special tokens as `old` does.

    `learned`: see `learn_vocabulary`; it is changed. `old`: the tokenizer whose special tokens are
    taken over; a special token of the same name stays where it is.
    """
    special = [
        token.content
        for _, token in sorted(old.backend.get_added_tokens_decoder().items())
        if token.special
    ]
    learned.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special]
    )
    ctx = old.backend.encode("a", add_special_tokens=True)
    inner = ctx.special_tokens_mask.index(0)
    before = [
        token
        for token, mark in zip(ctx.tokens[:inner], ctx.special_tokens_mask[:inner], strict=True)
        if mark
    ]
    after = [
        token
        for token, mark in zip(ctx.tokens[inner:], ctx.special_tokens_mask[inner:], strict=True)
        if mark
    ]
    if before or after:
        used = list(dict.fromkeys([*before, *after]))
        learned.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            pair=[*before, "$A", *after, "$B:1", *(f"{token}:1" for token in after)],
            special_tokens=[(token, learned.token_to_id(token)) for token in used],
        )
    return learned


def whole_words(tokenizer: TextTokenizer) -> list[str]:
    """List the words that a vocabulary has as one token.

    Returns distinct words of letters only, in lower case, in the order of their ids.
    """
    prefix = getattr(tokenizer.backend.model, "continuing_subword_prefix", None)
    result: dict[str, None] = {}
    for token in sorted(
        vocabulary := tokenizer.backend.get_vocab(with_added_tokens=False),
        key=vocabulary.__getitem__,
    ):
        marked = token.startswith(WORD_MARKS)
        if marked or (prefix and not token.startswith(prefix)):
            word = unicodedata.normalize("NFKC", token[1:] if marked else token).lower()
            if len(word) >= SHORTEST_WORD and word.isalpha():
                result[word] = None
    return list(result)


def with_words(learned: Tokenizer, words: Sequence[str]) -> Tokenizer:
    """Add words to a learned vocabulary, each as probable as the piece joined last.

    `learned`: see `learn_vocabulary`; it adds no special tokens yet. `words`: in lower case; those
    that it has as one piece are left out. Returns a new tokenizer, the words behind the learned
    pieces.
    """
    spec = json.loads(learned.to_str())
    pieces = spec["model"]["vocab"]
    known, last = {piece for piece, _ in pieces}, pieces[-1][1]
    pieces += [[WORD_MARKS[0] + word, last] for word in words if WORD_MARKS[0] + word not in known]
    return Tokenizer.from_str(json.dumps(spec, ensure_ascii=False))


def learn_beside(
    texts: Sequence[str], size: int, initial: TextTokenizer, *, keep_words: bool
) -> TextTokenizer:
    """Learn a vocabulary that takes the place of another one.

    `size`: pieces that are learned, at most. `initial`: the tokenizer whose special tokens are
    taken over. Raises WorkFailed see `learn_vocabulary`.
    """
    learned = learn_vocabulary(texts, size)
    return TextTokenizer(
        with_special_tokens(
            with_words(learned, whole_words(initial)) if keep_words else learned, initial
        )
    )
