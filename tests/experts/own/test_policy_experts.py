"""Self-evaluation and the teacher over HTTP to a policy of five words whose probabilities are written down here."""

import math
from collections.abc import Iterator

import pytest
from fastapi import FastAPI, Response

from services.contracts.answers import AnswerKind, Feedback, TopKDistribution
from services.contracts.experts import ConsultAbstain, ConsultRequest, ConsultResult, ContextAnswer
from services.contracts.tasks import Message
from services.contracts.templates import Template
from services.experts.own.self_evaluation import SelfEvaluationExpert
from services.experts.own.teacher import TeacherExpert
from services.policy.client import PolicyClient, PolicyUnavailable
from services.policy.contract import (
    FinishReason,
    Sample,
    SampledPrompt,
    SampleRequest,
    SampleResponse,
    ScoredItem,
    ScoreRequest,
    ScoreResponse,
    TokenIds,
    TokenizeRequest,
)
from services.runtime.errors import ServiceUnavailable
from tests.experts.samples import TOKENIZER, make_question
from tests.serving import serve

PROBABILITIES = [0.4, 0.3, 0.15, 0.1, 0.05]
WORDS = {"Yes": [1], "No": [3], "The answer is 5": [1, 3]}


class SmallPolicy:
    """Every position has the same distribution, tempered as asked; remembers what it was asked."""

    def __init__(self) -> None:
        self.scored: list[ScoreRequest] = []
        self.drawn: list[SampleRequest] = []
        self.critique = " It says 5 and should say why.\n"
        self.status = 200

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/v1/tokenize")
        def tokenize(body: TokenizeRequest) -> TokenIds:
            return TokenIds(token_ids=WORDS.get(body.text or "", [0, 2, 4]), tokenizer_hash=TOKENIZER)

        @app.post("/v1/sample")
        def sample(body: SampleRequest) -> SampleResponse:
            self.drawn.append(body)
            drawn = Sample(token_ids=[1], logprobs=[-0.5], text=self.critique, finish_reason=FinishReason.STOP)
            prompts = [SampledPrompt(id=one.id, prompt_token_ids=[1], samples=[drawn]) for one in body.prompts]
            return SampleResponse(version="v7", tokenizer_hash=TOKENIZER, prompts=prompts)

        @app.post("/v1/score", response_model=None)
        def score(body: ScoreRequest) -> ScoreResponse | Response:
            if self.status != 200:
                return Response('{"detail": "no"}', self.status, media_type="application/json")
            self.scored.append(body)
            weights = [p ** (1 / body.temperature) for p in PROBABILITIES]
            logprobs = [math.log(w / sum(weights)) for w in weights]
            k = min(body.top_k, 4)
            items = []
            for item in body.items:
                length = len(item.response_token_ids)
                items.append(
                    ScoredItem(
                        logprobs=[logprobs[i % 5] for i in item.response_token_ids],
                        top_token_ids=[list(range(k))] * length if k else [],
                        top_logprobs=[logprobs[:k]] * length if k else [],
                        tail_logmass=[math.log(sum(map(math.exp, logprobs[k:])))] * length if k else [],
                    )
                )
            return ScoreResponse(version="v7", tokenizer_hash=TOKENIZER, items=items)

        return app


@pytest.fixture
def policy() -> SmallPolicy:
    return SmallPolicy()


@pytest.fixture
def client(policy: SmallPolicy) -> Iterator[PolicyClient]:
    with serve(policy.app()) as url, PolicyClient(url) as client:
        yield client


def question(*context: ContextAnswer, top_k: int = 3, tokenizer_hash: str = TOKENIZER) -> ConsultRequest:
    kinds = (AnswerKind.TOPK, AnswerKind.SCORE, AnswerKind.EVIDENCE)
    return make_question(kinds=kinds, context=context, token_ids=(0, 4, 2), top_k=top_k, tokenizer_hash=tokenizer_hash)


def test_self_evaluation_is_the_mean_probability_of_the_answer_with_yes_against_no_in_one_request(
    policy: SmallPolicy, client: PolicyClient
) -> None:
    result = SelfEvaluationExpert(client).consult(question())
    assert isinstance(result, ConsultResult)
    assert result.score == pytest.approx((0.4 * 0.05 * 0.15) ** (1 / 3))
    assert result.feedback is None
    assert result.evidence is not None
    assert result.evidence["signals"] == {"likelihood": result.score, "p_yes": pytest.approx(0.3 / (0.3 + 0.1))}
    assert (len(policy.scored), policy.drawn) == (1, [])
    answer, yes, no = policy.scored[0].items
    assert (answer.response_token_ids, yes.response_token_ids, no.response_token_ids) == ([0, 4, 2], [1], [3])
    assert answer.messages == question().task.messages
    assert yes.messages is not None
    assert "What is 2 + 3?" in yes.messages[0].content
    assert "The answer is 5" in yes.messages[0].content
    assert SelfEvaluationExpert(client).descriptor.verifier is False
    assert AnswerKind.FEEDBACK not in SelfEvaluationExpert(client).descriptor.kinds


def test_self_evaluation_reads_the_last_turn_alone_of_an_agents_rollout(
    policy: SmallPolicy, client: PolicyClient
) -> None:
    asked = question()
    turns = [Message(role="assistant", content="add(2, 3)"), Message(role="tool", content="5")]
    result = SelfEvaluationExpert(client).consult(
        asked.model_copy(update={"rollout": asked.rollout.model_copy(update={"turns": turns})})
    )
    assert isinstance(result, ConsultResult)
    assert result.score == pytest.approx((0.3 * 0.1) ** 0.5)
    assert policy.scored[0].items[0].messages == [*asked.task.messages, *turns]


def test_self_evaluation_abstains_from_an_empty_answer_and_another_tokenizers(client: PolicyClient) -> None:
    expert = SelfEvaluationExpert(client)
    empty = question()
    empty = empty.model_copy(update={"rollout": empty.rollout.model_copy(update={"token_ids": []})})
    assert isinstance(expert.consult(empty), ConsultAbstain)
    assert isinstance(expert.consult(question(tokenizer_hash="b" * 64)), ConsultAbstain)


def test_a_critique_is_drawn_where_it_is_set_and_asked_for_and_is_the_same_each_time(
    policy: SmallPolicy, client: PolicyClient
) -> None:
    expert = SelfEvaluationExpert(client, critique_temperature=0.7)
    assert AnswerKind.FEEDBACK in expert.descriptor.kinds
    scored = expert.consult(question())
    assert isinstance(scored, ConsultResult)
    assert (scored.feedback, policy.drawn) == (None, [])
    wanted = question()
    kinds = [AnswerKind.SCORE, AnswerKind.FEEDBACK]
    wanted = wanted.model_copy(update={"ask": wanted.ask.model_copy(update={"kinds": kinds})})
    first, again = expert.consult(wanted), expert.consult(wanted)
    assert isinstance(first, ConsultResult)
    assert first.feedback == Feedback(text="It says 5 and should say why.")
    assert again == first
    assert [draw.temperature for draw in policy.drawn] == [0.7, 0.7]
    assert policy.drawn[0].prompts[0].seed == policy.drawn[1].prompts[0].seed
    prompt = policy.drawn[0].prompts[0].messages
    assert prompt is not None
    assert "The answer is 5" in prompt[0].content
    policy.critique = " "
    silent = expert.consult(wanted)
    assert isinstance(silent, ConsultResult)
    assert silent.feedback is None


def test_a_teacher_shown_a_solution_gives_its_top_k_and_tail_at_every_token(
    policy: SmallPolicy, client: PolicyClient
) -> None:
    solution = ContextAnswer(expert="reference", solution="It is 5.")
    result = TeacherExpert(client).consult(question(solution))
    assert isinstance(result, ConsultResult)
    distribution = result.distribution
    assert isinstance(distribution, TopKDistribution)
    assert distribution.token_ids == [[0, 1, 2]] * 3
    assert [math.exp(x) for x in distribution.logprobs[1]] == pytest.approx([0.4, 0.3, 0.15])
    assert distribution.tail_mass == pytest.approx([0.15] * 3)
    assert result.evidence == {"policy_version": "v7", "shown": "solution"}
    item = policy.scored[0].items[0]
    assert item.response_token_ids == [0, 4, 2]
    assert item.messages is not None
    assert [m.role for m in item.messages] == ["user", "assistant", "user"]
    assert item.messages[1].content == "It is 5."


def test_the_temperature_asked_for_is_used_before_truncation_and_stated(client: PolicyClient) -> None:
    asked = question(ContextAnswer(expert="reference", solution="5"))
    asked = asked.model_copy(update={"ask": asked.ask.model_copy(update={"temperature": 0.5})})
    result = TeacherExpert(client).consult(asked)
    assert isinstance(result, ConsultResult)
    assert result.distribution is not None
    assert result.distribution.temperature == 0.5
    assert isinstance(result.distribution, TopKDistribution)
    squares = [p * p for p in PROBABILITIES]
    assert math.exp(result.distribution.logprobs[0][0]) == pytest.approx(squares[0] / sum(squares))


def test_a_teacher_with_feedback_alone_is_reprompted(policy: SmallPolicy, client: PolicyClient) -> None:
    feedback = ContextAnswer(expert="execution", score=0.0, feedback=Feedback(text="it was 6"))
    assert isinstance(TeacherExpert(client, Template.TURNS).consult(question(feedback)), ConsultResult)
    messages = policy.scored[0].items[0].messages
    assert messages is not None
    assert len(messages) == 1
    assert "it was 6" in messages[0].content


def test_a_teacher_abstains_with_nothing_to_show_or_another_tokenizer(client: PolicyClient) -> None:
    score_only = ContextAnswer(expert="execution", score=1.0)
    assert isinstance(TeacherExpert(client).consult(question()), ConsultAbstain)
    assert isinstance(TeacherExpert(client).consult(question(score_only)), ConsultAbstain)
    solution = ContextAnswer(expert="reference", solution="5")
    assert isinstance(TeacherExpert(client).consult(question(solution, tokenizer_hash="b" * 64)), ConsultAbstain)


def test_a_policy_that_is_away_is_unavailable_and_one_that_cannot_read_this_is_an_abstention(
    policy: SmallPolicy, client: PolicyClient
) -> None:
    asked = question(ContextAnswer(expert="reference", solution="5"))
    for expert in (TeacherExpert(client), SelfEvaluationExpert(client)):
        policy.status = 503
        with pytest.raises(PolicyUnavailable):
            expert.consult(asked)
        policy.status = 422
        assert isinstance(expert.consult(asked), ConsultAbstain)
        policy.status = 401
        with pytest.raises(ServiceUnavailable, match="refuses the expert"):
            expert.consult(asked)
