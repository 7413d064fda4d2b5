"""A policy process that only tokenises, over the real protocol: one token a character, ids below 256."""

from fastapi import FastAPI

from services.policy.contract import (
    Counters,
    DetokenizeBatch,
    DetokenizeRequest,
    PolicyInfo,
    Text,
    TextBatch,
    TokenIds,
    TokenIdsBatch,
    TokenizeBatch,
    TokenizeRequest,
)

TOKENIZER = "a" * 64
VOCAB = 256
MAX_CONTEXT = 1000


def create_app() -> FastAPI:
    """The process's app."""
    app = FastAPI()

    @app.get("/v1/policy")
    def info() -> PolicyInfo:
        return PolicyInfo(
            model="tiny",
            base_sha256="b" * 64,
            tokenizer_hash=TOKENIZER,
            vocab_size=VOCAB,
            eos_token_ids=[0],
            max_context=MAX_CONTEXT,
            device="cpu",
            dtype="float32",
            serving="base",
            versions=[],
            counters=Counters.model_validate(dict.fromkeys(Counters.model_fields, 0)),
        )

    @app.post("/v1/tokenize")
    def tokenize(body: TokenizeRequest) -> TokenIds:
        text = body.text if body.messages is None else "\n".join(m.content for m in body.messages)
        assert text is not None
        return TokenIds(token_ids=[min(ord(c), VOCAB - 1) for c in text], tokenizer_hash=TOKENIZER)

    @app.post("/v1/detokenize")
    def detokenize(body: DetokenizeRequest) -> Text:
        return Text(text="".join(map(chr, body.token_ids)))

    @app.post("/v1/tokenize/batch")
    def tokenize_batch(body: TokenizeBatch) -> TokenIdsBatch:
        return TokenIdsBatch(token_ids=[tokenize(item).token_ids for item in body.items], tokenizer_hash=TOKENIZER)

    @app.post("/v1/detokenize/batch")
    def detokenize_batch(body: DetokenizeBatch) -> TextBatch:
        return TextBatch(texts=["".join(map(chr, item)) for item in body.items])

    return app
