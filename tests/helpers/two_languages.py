"""Words of two languages for the English ones of the topics."""

from __future__ import annotations

GERMAN = {
    "the": "die",
    "cat": "katze",
    "dog": "hund",
    "sleeps": "schläft",
    "runs": "läuft",
    "fast": "schnell",
}

RUSSIAN = {
    "the": "эта",
    "cat": "кошка",
    "dog": "собака",
    "sleeps": "спит",
    "runs": "бежит",
    "fast": "быстро",
}
