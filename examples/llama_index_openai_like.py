"""LlamaIndex against `taskdistill serve MODEL`: pip install llama-index-embeddings-openai-like;
python llama_index_openai_like.py [URL].
"""

import sys

import httpx
from llama_index.core import Document, VectorStoreIndex
from llama_index.embeddings.openai_like import OpenAILikeEmbedding

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
name = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
embedding = OpenAILikeEmbedding(model_name=name, api_base=f"{url}/v1", api_key="not-needed")
texts = [
    "Leave the bread in a paper bag.",
    "The train leaves at noon.",
    "A lock lets one thread in at a time.",
]
index = VectorStoreIndex.from_documents(
    [Document(text=text) for text in texts], embed_model=embedding
)
for node in index.as_retriever(similarity_top_k=3).retrieve("How do threads take turns?"):
    print(f"{node.score:.3f}  {node.text}")
