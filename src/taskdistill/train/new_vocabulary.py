"""A vocabulary of its own for a static student: pieces of a unigram model, learned from the texts that it will read."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from taskdistill.errors import WorkFailed

UNKNOWN = "[UNK]"
LONGEST_PIECE = 12
"""Characters of a piece, at most: a longer one is a word that few texts share."""


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
