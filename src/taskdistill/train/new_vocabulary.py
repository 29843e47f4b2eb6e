"""A vocabulary of its own for a student: pieces of a unigram model, learned from the texts that it will read."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from taskdistill.errors import WorkFailed
from taskdistill.model.text import TextTokenizer

UNKNOWN = "[UNK]"
LONGEST_PIECE = 12
"""Characters of a piece, at most: a longer one is a word that few texts share."""
SHORTEST_WORD = 3
"""Letters of a word that is taken over from another vocabulary, at least: shorter ones would cut words of other languages."""
WORD_MARKS = ("\u2581", "\u0120")
"""What begins a word in the vocabularies that mark words rather than the rest of them."""


def learn_vocabulary(texts: Sequence[str], size: int) -> Tokenizer:
    """Learn pieces from texts of any languages and scripts.

    Texts are brought to NFKC and to lower case, words are marked by the space before them, and punctuation stands alone. Scripts without
    spaces are cut by the unigram model itself.

    Args:
        texts: What the pieces are counted in.
        size: Pieces, at most.

    Returns:
        A tokenizer that adds no special tokens; its unknown token is the first id.

    Raises:
        WorkFailed: If the texts are too few for a vocabulary.
    """
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=[UNKNOWN], unk_token=UNKNOWN, max_piece_length=LONGEST_PIECE, show_progress=False
    )
    try:
        made.train_from_iterator(texts, trainer)
    except BaseException as error:  # the library raises bare Exception and Rust panics
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise WorkFailed(f"no vocabulary of {size:,} pieces could be learned from {len(texts):,} texts: {error}") from None
    return made


def with_special_tokens(learned: Tokenizer, old: TextTokenizer) -> Tokenizer:
    """Let a learned vocabulary begin and end texts as another tokenizer does, with its special tokens.

    Args:
        learned: See `learn_vocabulary`; it is changed.
        old: The tokenizer whose special tokens are taken over; a special token of the same name stays where it is.

    Returns:
        The learned one.
    """
    special = [token.content for _, token in sorted(old.backend.get_added_tokens_decoder().items()) if token.special]
    learned.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    around = old.backend.encode("a", add_special_tokens=True)
    inner = around.special_tokens_mask.index(0)
    before = [token for token, mark in zip(around.tokens[:inner], around.special_tokens_mask[:inner], strict=True) if mark]
    after = [token for token, mark in zip(around.tokens[inner:], around.special_tokens_mask[inner:], strict=True) if mark]
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

    Args:
        tokenizer: Of any kind.

    Returns:
        Distinct words of letters only, in lower case, in the order of their ids.
    """
    prefix = getattr(tokenizer.backend.model, "continuing_subword_prefix", None)
    found: dict[str, None] = {}
    for token in sorted(vocabulary := tokenizer.backend.get_vocab(with_added_tokens=False), key=vocabulary.__getitem__):
        marked = token.startswith(WORD_MARKS)
        if marked or (prefix and not token.startswith(prefix)):
            word = unicodedata.normalize("NFKC", token[1:] if marked else token).lower()
            if len(word) >= SHORTEST_WORD and word.isalpha():
                found[word] = None
    return list(found)


def with_words(learned: Tokenizer, words: Sequence[str]) -> Tokenizer:
    """Add words to a learned vocabulary, each as probable as its least probable piece, so that they are cut only for a better reason.

    Args:
        learned: See `learn_vocabulary`; it adds no special tokens yet.
        words: In lower case; those that it has as one piece are left out.

    Returns:
        A new tokenizer, the words behind the learned pieces.
    """
    spec = json.loads(learned.to_str())
    pieces = spec["model"]["vocab"]
    known, least = {piece for piece, _ in pieces}, min(score for _, score in pieces)
    pieces += [[WORD_MARKS[0] + word, least] for word in words if WORD_MARKS[0] + word not in known]
    return Tokenizer.from_str(json.dumps(spec, ensure_ascii=False))
