"""The arms: what each one trains on, in which phases, and which other arm it differs from in one
thing only.
"""

from __future__ import annotations

from dataclasses import dataclass

DISTILL, CONTRAST, BOTH = ("distill",), ("info_nce",), ("info_nce", "distill")


@dataclass(frozen=True, kw_only=True)
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
        Arm(name="A0", about="the base checkpoint, not trained", phases=()),
        Arm(name="D", about="distillation alone", phases=(DISTILL,)),
        Arm(name="C", about="contrast alone", phases=(CONTRAST,)),
        Arm(name="DC", about="both at once", phases=(BOTH,)),
        Arm(
            name="D->DC", about="distillation, then both: the paper's order", phases=(DISTILL, BOTH)
        ),
        Arm(name="D->C", about="distillation, then contrast", phases=(DISTILL, CONTRAST)),
        Arm(name="D->D", about="distillation, then more of it", phases=(DISTILL, DISTILL)),
        Arm(
            name="D+gor",
            about="D with the spread-out regulariser",
            phases=(DISTILL,),
            like="D",
            gor=True,
        ),
        Arm(
            name="C+gor",
            about="C with the spread-out regulariser",
            phases=(CONTRAST,),
            like="C",
            gor=True,
        ),
        Arm(
            name="DC+gor",
            about="DC with the spread-out regulariser",
            phases=(BOTH,),
            like="DC",
            gor=True,
        ),
        Arm(
            name="DC-mrl",
            about="DC without Matryoshka",
            phases=(BOTH,),
            like="DC",
            matryoshka=False,
        ),
        Arm(
            name="D-shuffled",
            about="D with the teacher's vectors permuted: negative control",
            phases=(DISTILL,),
            like="D",
            shuffled=True,
        ),
        Arm(
            name="C-large", about="C with a larger batch", phases=(CONTRAST,), like="C", large=True
        ),
        Arm(
            name="C-flops",
            about="C with as much floating-point work as DC, teacher included",
            phases=(CONTRAST,),
            like="C",
            matched="flops",
        ),
        Arm(
            name="C-seconds",
            about="C with as many CPU-seconds as DC, teacher included",
            phases=(CONTRAST,),
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
