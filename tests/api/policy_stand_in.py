"""A policy process that only tokenises, over the real protocol: one token a character, ids below 256."""

from fastapi import FastAPI

from services.policy.contract import DetokenizeRequest, Text, TokenIds, TokenizeRequest

TOKENIZER = "a" * 64
VOCAB = 256


def create_app() -> FastAPI:
    """The process's app."""
    app = FastAPI()

    @app.post("/v1/tokenize")
    def tokenize(body: TokenizeRequest) -> TokenIds:
        text = body.text if body.messages is None else "\n".join(m.content for m in body.messages)
        assert text is not None
        return TokenIds(token_ids=[min(ord(c), VOCAB - 1) for c in text], tokenizer_hash=TOKENIZER)

    @app.post("/v1/detokenize")
    def detokenize(body: DetokenizeRequest) -> Text:
        return Text(text="".join(map(chr, body.token_ids)))

    return app
