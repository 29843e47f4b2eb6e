"""Words with a closed set of values that several layers share."""

from __future__ import annotations

from enum import StrEnum


class Pooling(StrEnum):
    """How per-token hidden states become one vector."""

    LAST = "last"
    MEAN = "mean"
    CLS = "cls"


class Precision(StrEnum):
    """How vectors are stored: float32, float16, int8 codes with stored ranges, or packed
    sign bits.
    """

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
    BINARY = "binary"


class Backend(StrEnum):
    """What runs a model: torch in float32, torch in eight bits, two other engines, or the fastest
    by measurement.
    """

    TORCH = "torch"
    INT8 = "int8"
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"
    AUTO = "auto"


class RowKind(StrEnum):
    """The four kinds of training rows."""

    PAIRS = "pairs"
    SCORED = "scored"
    LABELLED = "labelled"
    TEXTS = "texts"


class TeacherSide(StrEnum):
    """Which texts of a row the teacher reads; the student learns every text of the row in
    any case.
    """

    BOTH = "both"
    QUERY = "query"
    POSITIVE = "positive"
    NEITHER = "neither"


MANIFEST = "taskdistill.json"
"""The manifest of every folder this package writes: kind, format version, hashes of files and
inputs.
"""
