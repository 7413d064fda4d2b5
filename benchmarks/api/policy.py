"""A policy process that only reads and writes text, over the real protocol: four characters a token.

    python -m benchmarks.api.policy --port 8710

Stands in for the policy because what the model's own tokenizer costs is not what this benchmark is about.
"""

import argparse
from typing import Final

import uvicorn
from fastapi import FastAPI

from services.policy.contract import (
    AnswerRead,
    AnswersBatch,
    AnswersRead,
    Counters,
    DetokenizeRequest,
    PolicyInfo,
    Text,
    TokenIds,
    TokenIdsBatch,
    TokenizeBatch,
    TokenizeRequest,
)

TOKENIZER: Final = "a" * 64
BASE: Final = "b" * 64
VOCAB: Final = 49_152
CHARS_PER_TOKEN: Final = 4

app = FastAPI()


@app.get("/v1/policy")
async def show_policy() -> PolicyInfo:
    """What is served."""
    return PolicyInfo(
        model="stand-in",
        base_sha256=BASE,
        former_base_sha256=BASE,
        tokenizer_hash=TOKENIZER,
        vocab_size=VOCAB,
        eos_token_ids=[0],
        max_context=4096,
        device="cpu",
        dtype="float32",
        serving="base",
        versions=[],
        counters=Counters.model_validate(dict.fromkeys(Counters.model_fields, 0)),
    )


def _tokenize(request: TokenizeRequest) -> list[int]:
    text = request.text or "\n".join(message.content for message in request.messages or [])
    return [len(text) % VOCAB] * max(1, len(text) // CHARS_PER_TOKEN)


def _detokenize(token_ids: list[int]) -> str:
    return "".join(f"{token % 1000:03} " for token in token_ids)


@app.post("/v1/tokenize")
async def tokenize(body: TokenizeRequest) -> TokenIds:
    """Token ids of one text."""
    return TokenIds(token_ids=_tokenize(body), tokenizer_hash=TOKENIZER)


@app.post("/v1/detokenize")
async def detokenize(body: DetokenizeRequest) -> Text:
    """Text of one list of ids."""
    return Text(text=_detokenize(body.token_ids))


@app.post("/v1/tokenize/batch")
async def tokenize_batch(body: TokenizeBatch) -> TokenIdsBatch:
    """Token ids of several texts."""
    return TokenIdsBatch(token_ids=[_tokenize(item) for item in body.items], tokenizer_hash=TOKENIZER)


@app.post("/v1/answers/batch")
async def read_answers(body: AnswersBatch) -> AnswersRead:
    """Answers of several rollouts, all of one turn."""
    texts = [_detokenize(item.token_ids) for item in body.items]
    return AnswersRead(answers=[AnswerRead(text=text, turns=[], start=0) for text in texts])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    uvicorn.run(app, host="127.0.0.1", port=parser.parse_args().port, log_level="warning")
