"""The official OpenAI client against `taskdistill serve MODEL`: pip install openai; python
openai_client.py [URL].
"""

import sys

from openai import OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
client = OpenAI(base_url=f"{url}/v1", api_key="not-needed")
model = client.models.list().data[0]
documents = [
    "Leave the bread in a paper bag.",
    "The train leaves at noon.",
    "A lock lets one thread in at a time.",
]


def embed(texts: list[str], role: str) -> list[list[float]]:
    """Embed texts with the model's prompt for a role."""
    answer = client.embeddings.create(model=model.id, input=texts, extra_body={"prompt_name": role})
    return [each.embedding for each in answer.data]


query, *_ = embed(["How do threads take turns?"], "query")
scores = [
    sum(a * b for a, b in zip(query, vector, strict=True))
    for vector in embed(documents, "document")
]
for score, text in sorted(zip(scores, documents, strict=True), reverse=True):
    print(f"{score:.3f}  {text}")
