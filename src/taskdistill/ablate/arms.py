"""The arms: what each one trains on, in which phases, and which other arm it differs from in one
thing only.
"""

from __future__ import annotations

from dataclasses import dataclass

DISTILL, CONTRAST, BOTH = ("distill",), ("info_nce",), ("info_nce", "distill")


@dataclass(frozen=True)
class Arm:
    """One way to train the student.

    Attributes:
        name: As in results and tables.
        phases: Loss terms of each phase; none for the untrained base.
        like: The arm whose tuned settings it takes, where it differs from that in one factor.
        gor: Whether the spread-out regulariser (GOR) is added.
        matryoshka: Whether every term is taken over prefixes too, as the recipe says, or over whole
            vectors only.
        shuffled: Whether the teacher's targets are permuted within the batch: the negative control.
        large: Whether the batch is `large_batch` times as large.
        matched: What it gets as much of as DC has, teacher included: `flops`, `seconds`, or nothing
            beyond equal steps.
    """

    name: str
    about: str
    phases: tuple[tuple[str, ...], ...]
    like: str | None = None
    gor: bool = False
    matryoshka: bool = True
    shuffled: bool = False
    large: bool = False
    matched: str | None = None

    @property
    def tuned(self) -> bool:
        """Whether it is tuned itself."""
        return bool(self.phases) and self.like is None

    @property
    def slug(self) -> str:
        """Its name as part of a path."""
        return self.name.replace("->", "-then-").replace("+", "-and-")

    def terms(self) -> tuple[str, ...]:
        """Return the terms of the last phase."""
        last = self.phases[-1] if self.phases else ()
        return (*last, "gor") if self.gor else last


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("A0", "the base checkpoint, not trained", ()),
        Arm("D", "distillation alone", (DISTILL,)),
        Arm("C", "contrast alone", (CONTRAST,)),
        Arm("DC", "both at once", (BOTH,)),
        Arm("D->DC", "distillation, then both: the paper's order", (DISTILL, BOTH)),
        Arm("D->C", "distillation, then contrast", (DISTILL, CONTRAST)),
        Arm("D->D", "distillation, then more of it", (DISTILL, DISTILL)),
        Arm("D+gor", "D with the spread-out regulariser", (DISTILL,), like="D", gor=True),
        Arm("C+gor", "C with the spread-out regulariser", (CONTRAST,), like="C", gor=True),
        Arm("DC+gor", "DC with the spread-out regulariser", (BOTH,), like="DC", gor=True),
        Arm("DC-mrl", "DC without Matryoshka", (BOTH,), like="DC", matryoshka=False),
        Arm(
            "D-shuffled",
            "D with the teacher's vectors permuted: negative control",
            (DISTILL,),
            like="D",
            shuffled=True,
        ),
        Arm("C-large", "C with a larger batch", (CONTRAST,), like="C", large=True),
        Arm(
            "C-flops",
            "C with as much floating-point work as DC, teacher included",
            (CONTRAST,),
            like="C",
            matched="flops",
        ),
        Arm(
            "C-seconds",
            "C with as many CPU-seconds as DC, teacher included",
            (CONTRAST,),
            like="C",
            matched="seconds",
        ),
    )
}
"""Every arm by name, in the order of tables."""

CORE = ("D", "C", "DC")
"""The arms of the claim, which have the most seeds."""


def arm_of(name: str) -> Arm:
    """Return an arm."""
    return ARMS[name]
