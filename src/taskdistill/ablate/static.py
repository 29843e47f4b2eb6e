"""A static student for ablations in minutes: a random table of token vectors that no teacher has
touched, and tokens made once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from tokenizers import Tokenizer

from taskdistill.ablate.settings import Experiment
from taskdistill.data.rows import Dataset, row_texts
from taskdistill.errors import BadInput
from taskdistill.model.backbone import resolve
from taskdistill.model.model import Model
from taskdistill.model.settings import ModelSettings
from taskdistill.model.student import StaticModel
from taskdistill.model.tokenizer import TextTokenizer, TokenizedTexts
from taskdistill.pipeline.setup import matryoshka_dims
from taskdistill.seeding import torch_seed
from taskdistill.train.static_init import FREQUENCY_FLOOR

STATIC = "static"
"""`model_type` of a student that is a token table: `student.config: {model_type: static,
hidden_size: 128}`.
"""


def is_static(experiment: Experiment) -> bool:
    """Say whether the student is a token table."""
    return (experiment.recipe.student.config or {}).get("model_type") == STATIC


def static_student(experiment: Experiment, datasets: Mapping[str, Dataset]) -> Model:
    """Make the table: random directions, each scaled by how rare its token is in the training
    texts.

    `datasets`: the training rows, from which the share of each token is counted. Raises BadInput if
    the configuration says more than its size, or a setting does not act on a table.
    """
    recipe = experiment.recipe
    config = dict(recipe.student.config or {})
    width = config.pop("hidden_size", None)
    config.pop("model_type")
    if not isinstance(width, int) or width < 1 or config:
        raise BadInput(
            "student.config of a static student is {model_type: static, hidden_size: N}; got"
            f" hidden_size {width!r} and {config}"
        )
    idle = {
        "student.pooling": recipe.student.pooling,
        "student.rope_theta": recipe.student.rope_theta,
        "student.layers": recipe.student.layers,
        "stage1.rope_theta": recipe.first_stage().rope_theta,
        "device": None if recipe.device in ("auto", "cpu") else recipe.device,
        "precision": None if recipe.precision in ("auto", "float32") else recipe.precision,
    }
    if message := [name for name, value in idle.items() if value is not None]:
        raise BadInput(
            f"{message[0]} has no effect on a static student, which is a mean of token vectors;"
            " remove it"
        )
    if recipe.student.tokenizer is None:
        raise BadInput(
            "student.init is `config`, so student.tokenizer must name a folder with a"
            " tokenizer.json"
        )
    source = resolve(recipe.student.tokenizer)
    tokenizer = TextTokenizer.load(source, special=False)
    texts = list(
        dict.fromkeys(
            text
            for _, each in sorted(datasets.items())
            for row in each.rows
            for text in row_texts(row)
        )
    )
    counts = np.bincount(
        np.concatenate(
            tokenizer.ids(texts, prompt="", max_length=recipe.first_stage().max_length).ids
        ),
        minlength=len(tokenizer),
    )
    shares = torch.from_numpy(counts / counts.sum()).float()
    generator = torch.Generator().manual_seed(torch_seed(recipe.seed))
    table = torch.randn(len(tokenizer), width, generator=generator) / width**0.5
    table *= (FREQUENCY_FLOOR / (FREQUENCY_FLOOR + shares))[:, None]
    settings = ModelSettings(
        prompts=dict(recipe.student.prompts),
        max_length=recipe.student.max_length,
        matryoshka_dims=matryoshka_dims(recipe.student.matryoshka_dims, width),
    )
    return Model(
        module=StaticModel(table).eval(),
        tokenizer=tokenizer,
        settings=settings,
        name=recipe.name,
        source=source,
    )


class CachedTokenizer(TextTokenizer):
    """A tokenizer that remembers: most of a static student's step would be tokenising, and every
    arm sees the same texts.
    """

    def __init__(self, other: TextTokenizer) -> None:
        """Take over another tokenizer.

        `other`: what makes the tokens of a text that is seen for the first time.
        """
        super().__init__(
            Tokenizer.from_str(other.backend.to_str()), special=other.special
        )  # its own, since a limit is state
        self.rows = other.rows
        self._known: dict[tuple[str, int, str], tuple[np.ndarray, bool]] = {}

    def ids(self, texts: Sequence[str], *, prompt: str, max_length: int) -> TokenizedTexts:
        """Tokenise texts behind a prompt, each distinct one once.

        `max_length`: most tokens of one text, special tokens included. Returns what
        `TextTokenizer.ids` returns.
        """
        if new := [
            text for text in dict.fromkeys(texts) if (prompt, max_length, text) not in self._known
        ]:
            tokenized = super().ids(new, prompt=prompt, max_length=max_length)
            for text, ids, cut in zip(new, tokenized.ids, tokenized.truncated, strict=True):
                self._known[prompt, max_length, text] = (ids, bool(cut))
        result = [self._known[prompt, max_length, text] for text in texts]
        return TokenizedTexts(
            [ids for ids, _ in result], np.array([cut for _, cut in result], dtype=bool)
        )
