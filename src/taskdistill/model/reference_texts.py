"""Fixed texts on which exports are compared and int8 is calibrated: the golden ones and more."""

from __future__ import annotations

from taskdistill.model import golden

_MORE = (
    "What is the capital of France?",
    "La capitale de la France est Paris, sur la Seine.",
    "¿Dónde está la biblioteca más cercana?",
    "Привет, мир! Это короткое предложение.",
    "你好,世界。今天天气很好,我们去公园散步吧。",
    "안녕하세요, 만나서 반갑습니다.",
    "สวัสดีชาวโลก",
    "שלום עולם, זהו משפט קצר.",
    "Γειά σου Κόσμε",
    "Xin chào thế giới",
    "Merhaba dünya, bugün hava çok güzel.",
    "👩‍🚀🚀 emoji 🇪🇺 and e\u0301 combining marks",
    "HTTP 404: /path/to/file?x=1&y=2#anchor",
    "3.14159 26535 89793 23846",
    "UPPER lower Title CamelCase snake_case",
    "  spaces   and\ttabs\nand lines  ",
    "SELECT name, COUNT(*) FROM users GROUP BY name HAVING COUNT(*) > 1;",
    "The quick brown fox jumps over the lazy dog.",
    "A loan is a sum of money that is lent and has to be paid back, usually with interest.",
)
_LONG = (
    "The history of the town goes back to a market that was held twice a year beside the river. ",
    "Der Vertrag regelt die Lieferung, die Zahlung und die Haftung beider Seiten. ",
    "光合成は、植物が光のエネルギーを使って糖を作る働きである。",
)
TEXTS = (
    *golden.TEXTS,
    *_MORE,
    _LONG[0] * 3,
    _LONG[0] * 12,
    _LONG[1] * 4,
    _LONG[1] * 10,
    _LONG[2] * 8,
)
"""The fixed texts, 32 of them: several scripts, code, numbers, one token to about two hundred."""
