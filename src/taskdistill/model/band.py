"""Which tokens of its own text a token sees: the band of a window, as a family describes it to
transformers.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskdistill.errors import BadInput
from taskdistill.model.packed import PackedBounds


@dataclass(frozen=True, slots=True)
class Band:
    """How many tokens a token sees before and behind itself; None for all of them."""

    before: int | None
    behind: int | None

    @classmethod
    def of(cls, causal: bool, window: int | None) -> Band:
        """Read the keywords of transformers; a window counts the token itself, on each side that is
        seen.
        """
        reach = None if window is None else window - 1
        return cls(reach, 0 if causal else reach)

    def cuts(self, length: int) -> bool:
        """Say whether a text of this length reaches out of its own window; the causal limit alone
        cuts nothing.
        """
        furthest = length - 1
        before = self.before is not None and self.before < furthest
        behind = self.behind is not None and 0 < self.behind < furthest
        return before or behind

    def sides(self, length: int) -> tuple[int, int]:
        """Give both reaches as numbers for texts of this length."""
        return (length if self.before is None else self.before), (
            length if self.behind is None else self.behind
        )


class FamilyMask:
    """The mask that a family describes to transformers, as a function of two places in the stream;
    it is never built.
    """

    def __init__(
        self, sees: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], device: torch.device
    ) -> None:
        self._sees, self._device = sees, device
        self._band: Band | None = None

    def band(self, groups: PackedBounds) -> Band:
        """Read off the band of the longest text, or refuse what is no band."""
        if self._band is None:
            length, last = groups.longest, groups.runs[-1]
            start = last[0] + (last[1] - 1) * length
            # The first, the middle and the last two tokens are looked at. Two neighbours each: one
            # token alone may stand where a chunk begins, and would see there what a band shows.
            places = {0, 1, length // 2, length // 2 + 1, length - 2, length - 1}
            rows = torch.tensor(
                sorted(place for place in places if 0 <= place < length), device=self._device
            )[:, None]
            keys = torch.arange(length, device=self._device)[None]
            zero = torch.zeros(1, 1, dtype=torch.int64, device=self._device)
            seen = (
                self._sees(zero, zero, rows + start, keys + start).expand(len(rows), length).cpu()
            )
            before, behind = (int(seen[row].sum()) - 1 for row in (-1, 0))
            distance = (keys - rows).cpu()
            if not torch.equal(seen, (distance >= -before) & (distance <= behind)):
                raise BadInput(
                    f"in texts of {length} tokens it is no band of the same width around each token"
                )
            # A reach as long as the text may be longer still: a later, longer text would show it.
            self._band = Band(
                *(None if reach == length - 1 else reach for reach in (before, behind))
            )
        return self._band


_bands: weakref.WeakKeyDictionary[nn.Module, tuple[int, Band]] = weakref.WeakKeyDictionary()
"""For each attention module the longest text whose mask was read, and the band; it is read again
for longer ones.
"""


def band_of(module: nn.Module, mask: FamilyMask, groups: PackedBounds, causal: bool) -> Band:
    """Give a layer's band as its family's mask says it, which is what transformers itself goes by.

    Raises BadInput if the mask is no band, or contradicts what the layer says of its direction.
    """
    longest, band = _bands.get(module, (0, Band(None, None)))
    if groups.longest <= longest:
        return band
    name = type(module).__name__
    try:
        band = mask.band(groups)
    except BadInput as error:
        raise BadInput(
            f"the mask that a {name} asks for cannot be packed: {error}; use a family of"
            " docs/families.md"
        ) from None
    # A token that sees only itself looks the same in both directions, and shows neither.
    only_itself = groups.longest == 1 or band == Band(0, 0)
    if (band.behind == 0) is not causal and not only_itself:
        direction = "causal" if causal else "not causal"
        raise BadInput(
            f"a {name} says that it is {direction}, its family's mask says otherwise; correct"
            " is_causal in config.json"
        )
    _bands[module] = (groups.longest, band)
    return band


@functools.lru_cache(maxsize=64)
def band_mask(
    *,
    rows: int,
    columns: int,
    shift: int,
    before: int,
    behind: int,
    sink: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Give 0 where a query of a block sees a key and minus infinity elsewhere, `(rows, columns)`.

    `shift`: the place of the first query among the keys. `sink`: one column of zeros more, before
    the others. Layers and texts share the few masks that there are.
    """
    with torch.inference_mode(False):  # made while encoding, it may be used in training
        distance = (
            torch.arange(columns, device=device)[None]
            - torch.arange(rows, device=device)[:, None]
            - shift
        )
        hidden = (distance < -before) | (distance > behind)
        mask = torch.zeros(rows, columns, dtype=dtype, device=device).masked_fill_(
            hidden, float("-inf")
        )
        return F.pad(mask, (1, 0)) if sink else mask
