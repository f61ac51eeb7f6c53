"""A LangChain application behind the proxy: the base_url is all that changes.

    pip install langchain-openai && python examples/langchain_app.py http://127.0.0.1:8080/v1 SmolLM2-135M-Instruct
"""

import sys

from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI


def main(base_url: str, model: str) -> None:
    """Stream one chain's answer."""
    prompt = ChatPromptTemplate.from_messages([("system", "You answer in one sentence."), ("user", "{question}")])
    chain = prompt | ChatOpenAI(base_url=base_url, model=model, api_key="unused", max_tokens=64)
    for chunk in chain.stream({"question": "Why is the sky blue?"}):
        print(chunk.content, end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:3])
