"""Vocabulary pruning: tokenizer and token table shrink together, and a text whose tokens all stay
keeps its ids' vectors exactly.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from taskdistill.errors import BadInput
from taskdistill.model.student import StaticModel, TransformerModel
from taskdistill.model.tokenizer import TextTokenizer

BYTES = 256
"""Single bytes of a byte-level vocabulary; without all of them some text would have no tokens."""


def used_tokens(
    tokenizer: TextTokenizer, texts: Sequence[str], prompts: Collection[str] = ("",)
) -> set[int]:
    """Find the tokens of some texts. Returns ids, special tokens among them."""
    result: set[int] = set()
    for prompt in prompts:
        for ids in tokenizer.ids(texts, prompt=prompt, max_length=1_000_000).ids:
            result.update(ids.tolist())
    return result


def prune_tokenizer(
    tokenizer: TextTokenizer, keep: Collection[int]
) -> tuple[TextTokenizer, np.ndarray]:
    """Cut a tokenizer down to some tokens, and to what it needs to read any text at all.

    Beside the tokens asked for stay: added and special tokens, the unknown token, single characters
    or bytes, and the parts from which merges make the kept tokens. A text whose tokens all stay is
    cut as before: WordPiece takes the longest piece that is there, the best path of a unigram model
    stays the best, and the merges of BPE on the way to a kept token all stay. `tokenizer`: the
    tokenizer; it is not changed. Returns the new tokenizer, and the old id of each of its ids.
    Raises BadInput if the tokenizer's model is of a kind that cannot be cut.
    """
    spec = json.loads(tokenizer.to_json())
    model, kind = spec["model"], spec["model"].get("type", "BPE")
    if kind not in ("WordPiece", "Unigram", "BPE", "WordLevel"):
        raise BadInput(f"a tokenizer with a model of type {kind!r} cannot be cut to fewer tokens")
    pieces = (
        {piece: number for number, (piece, _) in enumerate(model["vocab"])}
        if kind == "Unigram"
        else dict(model["vocab"])
    )
    stays = (
        set(keep)
        | {token["id"] for token in spec.get("added_tokens") or []}
        | _needed(model, kind, pieces)
    )
    if kind == "BPE":
        stays |= _parts(model, pieces, stays)
    old = np.array(
        sorted(
            stays & ({*pieces.values()} | {token["id"] for token in spec.get("added_tokens") or []})
        ),
        dtype=np.int64,
    )
    new = {int(number): place for place, number in enumerate(old)}
    _renumber(spec, model, kind, pieces, new)
    return (
        TextTokenizer(
            Tokenizer.from_str(json.dumps(spec, ensure_ascii=False)), special=tokenizer.special
        ),
        old,
    )


def _needed(model: Mapping[str, Any], kind: str, pieces: Mapping[str, int]) -> set[int]:
    """Tokens without which some text could not be written: the unknown one, single characters and
    bytes.
    """
    prefix = model.get("continuing_subword_prefix") or ""
    single = {
        number
        for piece, number in pieces.items()
        if len(piece) == 1 or (prefix and len(piece.removeprefix(prefix)) == 1)
    }
    single |= {
        number
        for piece, number in pieces.items()
        if piece.startswith("<0x") and piece.endswith(">")
    }
    if kind == "Unigram":
        return single | ({model["unk_id"]} if model.get("unk_id") is not None else set())
    return single | {pieces[model["unk_token"]]} if model.get("unk_token") in pieces else single


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
    return [(first, second) for first, second in pairs]


def _parts(model: Mapping[str, Any], pieces: Mapping[str, int], stays: Collection[int]) -> set[int]:
    """Every token on the way of merges to a kept one."""
    pieces_of: dict[int, list[int]] = {}
    prefix = model.get("continuing_subword_prefix") or ""
    for left, right in _merges(model):
        merged = left + right.removeprefix(prefix)
        if merged in pieces:
            pieces_of.setdefault(pieces[merged], []).extend(
                pieces[part] for part in (left, right) if part in pieces
            )
    result, left_over = set(stays), list(stays)
    while left_over:
        for part in pieces_of.get(left_over.pop(), ()):
            if part not in result:
                result.add(part)
                left_over.append(part)
    return result


def _renumber(
    spec: dict[str, Any],
    model: dict[str, Any],
    kind: str,
    pieces: Mapping[str, int],
    new: Mapping[int, int],
) -> None:
    """Write the kept tokens and their new ids into a tokenizer's description, in place."""
    if kind == "Unigram":
        model["vocab"] = [entry for number, entry in enumerate(model["vocab"]) if number in new]
        if model.get("unk_id") is not None:
            model["unk_id"] = new[model["unk_id"]]
    else:
        model["vocab"] = {piece: new[number] for piece, number in pieces.items() if number in new}
    if kind == "BPE":
        prefix, vocab = model.get("continuing_subword_prefix") or "", model["vocab"]
        model["merges"] = [
            [left, right]
            for left, right in _merges(model)
            if left in vocab and right in vocab and left + right.removeprefix(prefix) in vocab
        ]
    for token in spec.get("added_tokens") or []:
        token["id"] = new[token["id"]]
    _renumber_special(spec.get("post_processor"), new)


def _renumber_special(step: dict[str, Any] | None, new: Mapping[int, int]) -> None:
    if step is None:
        return
    for part in step.get("processors", ()):
        _renumber_special(part, new)
    for name in ("sep", "cls"):
        if step["type"] in ("BertProcessing", "RobertaProcessing"):
            step[name] = [step[name][0], new[step[name][1]]]
    for token in (step.get("special_tokens") or {}).values():
        token["ids"] = [new[number] for number in token["ids"]]


def prune_embeddings(module: TransformerModel | StaticModel, old: np.ndarray) -> None:
    """Keep some rows of a model's token table, in place."""
    rows = torch.from_numpy(old)
    if isinstance(module, StaticModel):
        module.table = nn.Parameter(
            module.table.detach()[rows].clone(), requires_grad=module.table.requires_grad
        )
        return
    table = module.backbone.get_input_embeddings().weight.detach()
    replace_embeddings(
        module, table[rows].clone(), {int(number): i for i, number in enumerate(old)}
    )


def replace_embeddings(module: TransformerModel, rows: Tensor, place: Mapping[int, int]) -> None:
    """Give a backbone another token table, in place.

    `rows`: the new table, `(new pieces, D)`. `place`: old id to new id of the tokens that both
    have; special ones that are not in it are no longer named by the configuration.
    """
    table = module.backbone.get_input_embeddings()
    assert isinstance(table, nn.Embedding)
    padding = None if table.padding_idx is None else place.get(table.padding_idx)
    embeddings = nn.Embedding(
        len(rows), table.embedding_dim, padding_idx=padding, device=rows.device
    )
    embeddings.weight = nn.Parameter(rows, requires_grad=table.weight.requires_grad)
    module.backbone.set_input_embeddings(embeddings)
    config = module.backbone.config
    config.vocab_size = len(rows)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"):
        if isinstance(number := getattr(config, name, None), int):
            setattr(config, name, place.get(number))
