"""LangChain against `taskdistill serve MODEL`: pip install langchain-openai; python
langchain_openai_embeddings.py [URL].
"""

import sys

import httpx
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import OpenAIEmbeddings

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
name = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
embeddings = OpenAIEmbeddings(
    model=name,
    base_url=f"{url}/v1",
    api_key="not-needed",
    # otherwise LangChain sends the tokens of another model's tokenizer
    check_embedding_ctx_length=False,
)
store = InMemoryVectorStore(embeddings)
store.add_texts(
    [
        "Leave the bread in a paper bag.",
        "The train leaves at noon.",
        "A lock lets one thread in at a time.",
    ]
)
for document, score in store.similarity_search_with_score("How do threads take turns?", k=3):
    print(f"{score:.3f}  {document.page_content}")
