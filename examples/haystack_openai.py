"""Haystack against `taskdistill serve MODEL`: pip install haystack-ai; python haystack_openai.py
[URL].
"""

import sys

import httpx
from haystack import Document
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import Secret

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
name = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
options = {"model": name, "api_base_url": f"{url}/v1", "api_key": Secret.from_token("not-needed")}
texts = [
    "Leave the bread in a paper bag.",
    "The train leaves at noon.",
    "A lock lets one thread in at a time.",
]
store = InMemoryDocumentStore(embedding_similarity_function="cosine")
store.write_documents(
    OpenAIDocumentEmbedder(**options, progress_bar=False).run(
        [Document(content=text) for text in texts]
    )["documents"]
)
query = OpenAITextEmbedder(**options).run("How do threads take turns?")["embedding"]
for document in InMemoryEmbeddingRetriever(store, top_k=3).run(query)["documents"]:
    print(f"{document.score:.3f}  {document.content}")
