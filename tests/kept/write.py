"""Write the folders kept here, in the present version of each format; run it only when a format's version number rises.

python tests/kept/write.py VERSION
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))


def main(version: str) -> None:
    """Write one folder of each format."""
    import tempfile

    from tiny_jina import write_repository

    from taskdistill.export.make import export
    from taskdistill.folders import dump_json
    from taskdistill.model.folder import read_model, write_model
    from taskdistill.model.golden import embed_with, golden_vectors

    with tempfile.TemporaryDirectory() as beside:
        for family in ("qwen3", "eurobert"):
            source = write_repository(Path(beside) / family, family, tasks=["retrieval", "clustering"])
            model = read_model(source)
            golden = dump_json(golden_vectors(embed_with(model), model.module.tasks))
            export(source, "jina-v5", None, HERE / f"jina-v5-{family}-{version}")
            (HERE / f"jina-v5-{family}-{version}.golden.json").write_text(golden)
            if family == "eurobert":
                model.name = "kept"
                write_model(HERE / f"model-{version}", model, extra_files={"golden.json": golden})
                export(source, "sentence-transformers", "clustering", HERE / f"sentence-transformers-{version}")


if __name__ == "__main__":
    main(sys.argv[1])
