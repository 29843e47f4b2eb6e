"""The model folder without this package: pip install sentence-transformers peft; python
sentence_transformers_folder.py MODEL [TASK].
"""

import sys

from sentence_transformers import SentenceTransformer

folder, task = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
model = SentenceTransformer(folder)
if task is not None:
    model.load_adapter(f"{folder}/adapters/{task}")
texts = [
    "Leave the bread in a paper bag.",
    "The train leaves at noon.",
    "A lock lets one thread in at a time.",
]
documents = model.encode(texts, prompt_name="document", normalize_embeddings=True)
query = model.encode(["How do threads take turns?"], prompt_name="query", normalize_embeddings=True)
for score, text in sorted(zip((query @ documents.T)[0].tolist(), texts, strict=True), reverse=True):
    print(f"{score:.3f}  {text}")
