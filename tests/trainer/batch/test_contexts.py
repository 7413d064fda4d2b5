"""What the teacher is shown: the first source with something that teaches; and which rollouts share a baseline."""

from dataclasses import dataclass, replace
from itertools import pairwise
from uuid import UUID

import pytest

from services.contracts.answers import Feedback, FeedbackSpan
from services.contracts.ids import new_id
from services.contracts.sources import SOURCE_ORDER, ContextSource
from services.contracts.templates import Template
from services.contracts.updates import Speaker
from services.policy.model.modeling import LoadedPolicy, decode_ids
from services.runtime.settings import Settings
from services.store.ledger.lesson_facts import LessonAnswer, LessonFacts, LessonOpinion
from services.store.loop.standing import Standing, Verdict
from services.store.teaching.material import Material
from tests.trainer.batch.building import CONFIG, TASK, build, known, material, only, precedent, shown_to, siblings
from tests.trainer.world import ANSWERS, TAUGHT_BY_ALL, answer, facts, reference
from trainer.batch.build import hash_batch
from trainer.batch.contexts import Showable
from trainer.batch.rows import Row
from trainer.config import TrainerConfig

OWN, CORRECTED, SOLUTION, PRECEDENTS, REFERENCE, FEEDBACK = SOURCE_ORDER
REMARK = Feedback(text="five is wrong")


def order(*sources: ContextSource, **settings: object) -> TrainerConfig:
    return TrainerConfig.model_validate({"sources": {"*": sources}} | settings)


def sources_of(row: Row) -> list[ContextSource | None]:
    return [context.source.kind for context in row.contexts]


def solution_of(row: Row) -> str | None:
    assert len(row.contexts) <= 1
    return row.contexts[0].solution if row.contexts else None


# --- the order of sources ---


def test_the_first_source_that_has_something_is_shown_and_takes_its_place_when_it_is_gone(policy: LoadedPolicy) -> None:
    told = answer(solution="by another expert", feedback=REMARK)
    lesson = facts(policy, answers=(told,))
    fixed = [
        material(OWN, "own"),
        material(CORRECTED, "corrected"),
        material(PRECEDENTS, precedents=(precedent("1+1?", "two"),)),
        material(REFERENCE, "referred"),
    ]

    def shown(*left_out: ContextSource) -> list[ContextSource | None]:
        kept = [source for source in SOURCE_ORDER if source not in left_out]
        return sources_of(only(policy, lesson, order(*kept), known(*fixed)))

    for number, source in enumerate(SOURCE_ORDER):
        assert shown(*SOURCE_ORDER[:number]) == [source]
    assert shown(*SOURCE_ORDER) == []
    assert sources_of(only(policy, lesson, CONFIG, known(*fixed))) == [OWN]


def test_the_order_is_set_for_each_domain_and_for_all_others(policy: LoadedPolicy) -> None:
    config = TrainerConfig.model_validate({"sources": {"math": ["reference", "own_success"], "*": ["correction"]}})
    fixed = known(material(OWN, "own"), material(CORRECTED, "corrected"), material(REFERENCE, "referred"))
    assert solution_of(only(policy, facts(policy), config, fixed)) == "referred"
    assert solution_of(only(policy, facts(policy, domain="code"), config, fixed)) == "corrected"


@dataclass(frozen=True)
class Refuses(Standing):
    """A standing in which these sources do not teach."""

    refused: tuple[ContextSource, ...] = ()

    def template_for(self, expert_id: UUID, source: ContextSource, domain: str, default: Template) -> Template | None:
        return None if source in self.refused else default


def test_a_source_that_does_not_teach_is_passed_over(policy: LoadedPolicy) -> None:
    fixed = known(material(OWN, "own"), material(CORRECTED, "corrected")).material
    refusing = Showable(fixed, Refuses(refused=(OWN,)))
    assert solution_of(only(policy, facts(policy), showable=refusing)) == "corrected"


def test_by_default_feedback_and_other_experts_solutions_are_shown_only_once_measured_to_teach(
    policy: LoadedPolicy,
) -> None:
    told = answer(solution="four", feedback=REMARK)
    lesson = facts(policy, answers=(told,))
    assert only(policy, lesson, showable=Showable()).contexts == ()
    measured = Standing({(told.expert_id, FEEDBACK, "math"): {Template.REPROMPT: Verdict(True, 0.1)}})
    assert sources_of(only(policy, lesson, showable=Showable({}, measured))) == [FEEDBACK]
    measured = Standing({(told.expert_id, SOLUTION, "math"): {Template.TURNS: Verdict(True, 0.1)}})
    assert sources_of(only(policy, lesson, showable=Showable({}, measured))) == [SOLUTION]


def test_the_template_is_the_one_that_teaches_more_in_this_domain(policy: LoadedPolicy) -> None:
    known_by = material(REFERENCE, "It is 4.")
    verdicts = {Template.TURNS: Verdict(True, 0.1), Template.REPROMPT: Verdict(True, 0.2)}
    standing = Standing({(known_by.expert_id, REFERENCE, "math"): verdicts})
    row = only(policy, facts(policy), showable=Showable({UUID(int=1): [known_by]}, standing))
    assert "Correct solution:\n\nIt is 4." in shown_to(policy, row)
    assert row.contexts[0].source.template is Template.REPROMPT
    elsewhere = only(policy, facts(policy, domain="code"), showable=Showable({UUID(int=1): [known_by]}, standing))
    assert elsewhere.contexts[0].source.template is Template.TURNS


def test_what_would_not_fit_gives_way_to_what_does(policy: LoadedPolicy) -> None:
    fixed = known(material(CORRECTED, "4" * 600), material(REFERENCE, "4"))
    assert solution_of(only(policy, facts(policy), showable=fixed)) == "4"
    assert not only(policy, facts(policy), showable=known(material(REFERENCE, "4" * 600))).taught


def test_nothing_as_a_source_shows_the_plain_prompt(policy: LoadedPolicy) -> None:
    lesson = facts(policy, answers=(reference(),))
    [context] = only(policy, lesson, order(ContextSource.NOTHING)).contexts
    assert context.prompt_ids == lesson.prompt_token_ids
    assert (context.source.kind, context.source.template, context.from_rollout) == (ContextSource.NOTHING, None, False)


# --- what is known about the task ---


def test_a_solution_is_shown_as_a_turn_and_the_question_again(policy: LoadedPolicy) -> None:
    row = only(policy, facts(policy), showable=known(material(REFERENCE, "It is 4.")))
    assert shown_to(policy, row) == (
        "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\nIt is 4.<|im_end|>\n"
        "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert not row.contexts[0].from_rollout
    assert row.covered


def test_unmeasured_precedents_of_other_tasks_are_shown_where_there_is_nothing_else_and_nothing_succeeds(
    policy: LoadedPolicy,
) -> None:
    given = material(PRECEDENTS, precedents=(precedent("What is 3+3?", "six"),))
    refer = material(REFERENCE, solution="four")
    judge = given.expert_id
    unsolved = Standing(poolers=frozenset({judge}), unsolved=frozenset({"math"}))
    solved = replace(unsolved, unsolved=frozenset())
    measured = replace(solved, verdicts={(judge, PRECEDENTS, "math"): {Template.TURNS: Verdict(True, 0.1)}})

    def shows(standing: Standing, *what: Material) -> list[ContextSource | None]:
        return sources_of(only(policy, facts(policy), showable=replace(known(*what), standing=standing)))

    assert shows(unsolved, given) == [PRECEDENTS]
    assert shows(unsolved, given, refer) == [REFERENCE]
    assert shows(solved, given) == []
    assert shows(measured, given, refer) == [PRECEDENTS]


def test_precedents_are_turns_before_the_question_and_offer_no_text_to_imitate(policy: LoadedPolicy) -> None:
    shown = (precedent("What is 1+1?", "two"), precedent("What is 3+3?", "six"))
    reprompt = CONFIG.model_copy(update={"template": Template.REPROMPT})
    row = only(policy, facts(policy), reprompt, known(material(PRECEDENTS, precedents=shown)))
    assert shown_to(policy, row) == (
        "<|im_start|>user\nWhat is 1+1?<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>\n"
        "<|im_start|>user\nWhat is 3+3?<|im_end|>\n<|im_start|>assistant\nsix<|im_end|>\n"
        "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n"
    )
    [context] = row.contexts
    assert (context.solution, context.solution_ids, context.from_rollout) == (None, (), False)


def test_precedents_that_were_chosen_for_this_rollout_make_its_credit_a_heuristic(policy: LoadedPolicy) -> None:
    told = tuple(precedent(f"What is {n}+{n}?", f"{2 * n}") for n in (1, 3))
    chosen, given = answer(precedents=told), answer(precedents=told, from_precedents=True)
    assert only(policy, facts(policy, answers=(chosen,))).contexts[0].from_rollout
    assert not only(policy, facts(policy, answers=(given,))).contexts[0].from_rollout
    assert "3+3" not in shown_to(policy, only(policy, facts(policy, answers=(chosen,))))
    two = only(policy, facts(policy, answers=(chosen,)), settings=Settings(precedents=2))
    assert "3+3" in shown_to(policy, two)


def test_a_term_keeps_its_source_its_template_and_everyone_behind_it(policy: LoadedPolicy) -> None:
    judge = Speaker(answer_id=new_id(), expert_id=new_id(), expert="execution", expert_version="1")
    own = material(OWN, "own", answers=(judge.answer_id,), names=("mine", "execution@1"), speakers=(judge,), weight=2.0)
    [context] = only(policy, facts(policy), showable=known(own)).contexts
    source = context.source
    assert (source.kind, source.template, context.weight) == (OWN, Template.TURNS, 2.0)
    assert (source.answers, source.names, source.speakers) == ((judge.answer_id,), ("mine", "execution@1"), (judge,))


# --- siblings and halves ---


def test_a_sibling_is_shown_only_to_the_other_half_and_the_halves_keep_their_own_baselines(
    policy: LoadedPolicy,
) -> None:
    batch = build(policy, siblings(policy, solved={2, 5}))
    assert [solution_of(row) for row in batch.rows] == [ANSWERS[5 if index % 2 == 0 else 2] for index in range(8)]
    assert [row.half for row in batch.rows] == [0, 1] * 4
    assert len({row.siblings for row in batch.rows}) == 1


def test_the_verifier_that_certified_a_sibling_speaks_in_what_it_teaches(policy: LoadedPolicy) -> None:
    group = siblings(policy, solved={2})
    said = group[2].judges[0]
    voice = Speaker(answer_id=said.id, expert_id=said.expert_id, expert="execution", expert_version="1")
    group[2] = replace(group[2], judges=(replace(said, weight=0.5, speakers=(voice,)),))
    [context] = build(policy, group).rows[1].contexts
    assert (context.source.speakers, context.source.answers, context.weight) == ((voice,), (said.id,), 0.5)
    assert context.source.names == (f"sibling {group[2].rollout_id}", "judge@1")


def test_a_success_that_two_verifiers_certified_is_shown_while_one_of_them_teaches_and_is_credited_to_it(
    policy: LoadedPolicy,
) -> None:
    """By measurement or, unmeasured, by presumption; whether a sibling's or a remembered one."""
    first, second = sorted((answer(score=1.0, weight=0.5), answer(score=1.0)), key=lambda one: one.expert_id)
    verdicts = {one.expert_id: {Template.TURNS: Verdict(False, -0.2)} for one in (first, second)}
    group = siblings(policy, solved={2})
    group[2] = replace(group[2], judges=(second, first))  # the second one was faster
    remembered = [material(OWN, "own", expert_id=one.expert_id, weight=one.weight) for one in (first, second)]

    def weights_of(*failing: LessonAnswer) -> list[list[float]]:
        bad = Standing({(one.expert_id, OWN, "math"): verdicts[one.expert_id] for one in failing})
        shown = (build(policy, group, Showable(known, bad)).rows[1] for known in ({}, {TASK: remembered}))
        return [[context.weight for context in row.contexts] for row in shown]

    assert weights_of() == [[first.weight]] * 2
    assert weights_of(first) == [[second.weight]] * 2
    assert weights_of(first, second) == [[]] * 2


def test_without_a_success_in_the_other_half_the_next_source_is_shown(policy: LoadedPolicy) -> None:
    batch = build(policy, siblings(policy, solved={2}), known(material(REFERENCE, "referred")))
    assert [solution_of(row) for row in batch.rows] == ["referred", ANSWERS[2]] * 4
    assert [row.half for row in batch.rows] == [0, 1] * 4
    alone = build(policy, siblings(policy, solved={2}))
    assert [bool(row.contexts) for row in alone.rows] == [False, True] * 4


def test_a_sibling_with_a_score_of_a_half_is_no_success(policy: LoadedPolicy) -> None:
    group = [replace(lesson, score=0.5) for lesson in siblings(policy, solved=set())]
    rows = build(policy, group).rows
    assert not any(row.solved or row.contexts for row in rows)
    group[2] = replace(group[2], score=0.6)
    assert [solution_of(row) for row in build(policy, group).rows] == [None, ANSWERS[2]] * 4


def test_where_no_verifier_exists_the_likeliest_sibling_is_shown_and_the_expert_that_chose_it_is_credited(
    policy: LoadedPolicy,
) -> None:
    chances = [0.2, 0.6, 0.3, 0.9, 0.4, 0.55, 0.45, 0.1]
    thought = [answer(expert="self-evaluation", score=0.8) for _ in chances]
    lessons = [
        replace(lesson, score=None, answers=(), judges=(), opinion=LessonOpinion(chance, said))
        for lesson, chance, said in zip(siblings(policy, set()), chances, thought, strict=True)
    ]
    rows = build(policy, lessons).rows
    assert [solution_of(row) for row in rows] == [lessons[3].text, None] * 4
    assert {row.contexts[0].source.answers for row in rows if row.contexts} == {(thought[3].id,)}
    assert [row.half for row in rows] == [0, 1] * 4
    assert not any(row.solved for row in rows), "a likelihood is no reward"


def test_a_remembered_success_goes_before_siblings_and_leaves_the_group_whole(policy: LoadedPolicy) -> None:
    rows = build(policy, siblings(policy, solved={2, 5}), known(material(OWN, "remembered"))).rows
    assert [(solution_of(row), row.half) for row in rows] == [("remembered", 0)] * 8


def test_a_remembered_success_that_does_not_fit_brings_no_sibling_into_a_group_that_is_whole(
    policy: LoadedPolicy,
) -> None:
    rows = build(policy, siblings(policy, solved={2, 5}), known(material(OWN, "4" * 600))).rows
    assert [(solution_of(row), row.half) for row in rows] == [(None, 0)] * 8


def test_a_group_of_fewer_than_eight_of_the_policys_own_is_shown_no_siblings(policy: LoadedPolicy) -> None:
    assert all(not row.contexts for row in build(policy, siblings(policy, {0, 1, 2}, size=6)).rows)
    mixed = [replace(one, group_size=4, shown=one.index_in_group >= 4) for one in siblings(policy, {0, 1})]
    assert {row.half for row in build(policy, mixed).rows[:4]} == {0}


def test_a_source_before_own_successes_that_is_fixed_leaves_the_group_whole(policy: LoadedPolicy) -> None:
    first = order(REFERENCE, OWN)
    fixed = known(material(REFERENCE, "referred"))
    assert {row.half for row in build(policy, siblings(policy, {2, 5}), fixed, first).rows} == {0}
    told = [replace(one, answers=(*one.answers, reference("told"))) for one in siblings(policy, {2, 5})]
    rows = build(policy, told, config=first).rows
    assert [(solution_of(row), row.half) for row in rows] == [("told", 0)] * 8
    assert [row.half for row in build(policy, told).rows] == [0, 1] * 4


@pytest.mark.parametrize("solved", [set[int](), {2}, {2, 5}, set(range(8))])
def test_what_the_group_answered_does_not_decide_whether_it_is_halved(policy: LoadedPolicy, solved: set[int]) -> None:
    group = [replace(one, answers=(*one.answers, answer(feedback=REMARK))) for one in siblings(policy, solved)]
    assert [row.half for row in build(policy, group).rows] == [0, 1] * 4
    assert {row.half for row in build(policy, group, config=order(REFERENCE, FEEDBACK)).rows} == {0}


def test_a_group_that_nobody_scores_or_whose_verifier_does_not_teach_stays_whole(policy: LoadedPolicy) -> None:
    unscored = [replace(one, score=None, answers=(), judges=()) for one in siblings(policy, set())]
    assert {row.half for row in build(policy, unscored).rows} == {0}
    rows = build(policy, siblings(policy, {2, 5}), Showable({}, Refuses(refused=(OWN,)))).rows
    assert [(solution_of(row), row.half) for row in rows] == [(None, 0)] * 8


# --- what the teacher drew ---


def rolled_in(policy: LoadedPolicy, text: str, index: int) -> LessonFacts:
    return replace(facts(policy, text, index=index), sampler_logprobs=None, shown=True)


def test_a_rollout_that_the_teacher_drew_is_no_example_and_shares_a_baseline_with_no_rollout_of_the_policy(
    policy: LoadedPolicy,
) -> None:
    group = siblings(policy, solved={2, 5})
    drawn = [rolled_in(policy, text, 8 + place) for place, text in enumerate(("four!", "4.", "four."))]
    rows = build(policy, [*group, *drawn]).rows
    assert [row.half for row in rows] == [0, 1] * 4 + [2, 2, 2]
    assert [row.rolled_in for row in rows] == [False] * 8 + [True] * 3
    assert [solution_of(row) for row in rows[8:]] == [ANSWERS[5], ANSWERS[2], ANSWERS[5]]
    assert {solution_of(row) for row in rows[:8]} == {ANSWERS[5], ANSWERS[2]}
    assert not any(row.credited or row.score is not None for row in rows[8:])


# --- feedback ---


def test_feedback_alone_is_shown_inside_the_question_and_its_credit_is_a_heuristic(policy: LoadedPolicy) -> None:
    row = only(policy, facts(policy, answers=(answer(feedback=REMARK),)))
    assert "five is wrong" in shown_to(policy, row)
    [context] = row.contexts
    assert context.from_rollout
    assert context.solution is None


def test_the_turns_template_leaves_feedback_out_so_that_a_group_shares_one_context(policy: LoadedPolicy) -> None:
    lesson = facts(policy, answers=(reference(), answer(feedback=REMARK)))
    assert "five is wrong" not in shown_to(policy, only(policy, lesson))
    reprompt = CONFIG.model_copy(update={"template": Template.REPROMPT})
    beside = only(policy, lesson, reprompt)
    assert "five is wrong" in shown_to(policy, beside)
    assert (sources_of(beside), beside.contexts[0].from_rollout) == ([REFERENCE], True)


def test_feedback_that_does_not_teach_is_not_shown_beside_a_solution_either(policy: LoadedPolicy) -> None:
    reprompt = CONFIG.model_copy(update={"template": Template.REPROMPT})
    lesson = facts(policy, answers=(reference(), answer(feedback=REMARK)))
    row = only(policy, lesson, reprompt, Showable({}, Refuses(refused=(FEEDBACK,))))
    assert "five is wrong" not in shown_to(policy, row)


def test_a_context_has_the_weight_of_the_most_trusted_who_speak_in_it(policy: LoadedPolicy) -> None:
    remarks = [answer(weight=weight, feedback=Feedback(text=f"from {weight}")) for weight in (0.25, 2.0, 1.0)]
    [context] = only(policy, facts(policy, answers=tuple(remarks))).contexts
    assert context.weight == 2.0


def test_a_term_names_everybody_whose_words_stand_in_it(policy: LoadedPolicy) -> None:
    told, teller = answer(feedback=REMARK), new_id()
    own = Speaker(answer_id=told.id, expert_id=new_id(), expert="judge", expert_version="1")
    heard = Speaker(answer_id=teller, expert_id=new_id(), expert="critic", expert_version="2", shown_to=told.id)
    [context] = only(policy, facts(policy, answers=(replace(told, speakers=(own, heard)),))).contexts
    assert context.source.answers == (told.id, teller)
    assert context.source.names == ("judge@1", "critic@2, shown to another expert")
    assert context.source.speakers == (own, heard)


PER_EXPERT = CONFIG.model_copy(update={"contexts": "per_expert"})


def test_one_context_an_expert_shows_each_answer_by_itself(policy: LoadedPolicy) -> None:
    said = [answer(expert=name, feedback=Feedback(text=f"{name} objects")) for name in ("judge", "critic")]
    row = only(policy, facts(policy, answers=(reference(), *said)), PER_EXPERT)
    shown = [decode_ids(policy.tokenizer, context.prompt_ids) for context in row.contexts]
    assert [("It is 4." in text, "judge objects" in text, "critic objects" in text) for text in shown] == [
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]
    assert [context.source.answers for context in row.contexts[1:]] == [(one.id,) for one in said]
    assert [context.from_rollout for context in row.contexts] == [False, True, True]


def test_feedback_on_spans_speaks_about_their_action_tokens_only(policy: LoadedPolicy) -> None:
    spans = [FeedbackSpan(start=1, end=3, text="no"), FeedbackSpan(start=2, end=9, text="nor here")]
    lesson = facts(policy, "2+2=5", answers=(answer(feedback=Feedback(spans=spans)),))
    row = only(policy, replace(lesson, action_mask=(True, True, True, False, True)))
    [context] = row.contexts
    assert context.spans == ((1, 3), (2, 9))
    assert row.spoken_about(context) == (1, 2, 4)
    assert row.taught
    assert not row.covered


def test_spans_within_feedback_on_the_whole_leave_it_on_the_whole(policy: LoadedPolicy) -> None:
    spans = [FeedbackSpan(start=1, end=3, text="no")]
    row = only(policy, facts(policy, answers=(answer(feedback=Feedback(text="wrong", spans=spans)),)))
    assert [context.spans for context in row.contexts] == [()]
    assert row.covered


# --- late lessons, and what was shown as one hash ---


def test_a_late_lesson_has_only_the_terms_of_its_own_answer_and_no_siblings(policy: LoadedPolicy) -> None:
    group = siblings(policy, {2, 5})
    late = replace(facts(policy, "no", index=5, answers=(answer(feedback=REMARK),)), late=True, ordinal=1)
    row = build(policy, [*group, late], known(material(CORRECTED, "Four!"))).rows[-1]
    assert (sources_of(row), row.siblings, row.half) == ([FEEDBACK], str(late.lesson_id), 0)


def test_what_a_teacher_drew_is_set_aside_where_what_it_was_shown_does_not_count_any_more(policy: LoadedPolicy) -> None:
    kept = replace(facts(policy), shown=True, shown_after=(reference(),))
    gone = replace(kept, lesson_id=new_id(), shown_after=(reference(), replace(reference(), weight=0.0)))
    batch = build(policy, [kept, gone])
    assert [row.lesson_id for row in batch.rows] == [kept.lesson_id]
    assert batch.invalid == {gone.lesson_id: "what its teacher was shown does not count any more"}


def test_the_batch_hash_changes_with_weights_opinions_precedents_and_what_a_teacher_was_shown(
    policy: LoadedPolicy,
) -> None:
    said, fixed = replace(reference(), precedents=(precedent("1?", "1"), precedent("2?", "2"))), reference()
    lesson, shown = facts(policy, answers=(said,)), material(PRECEDENTS, precedents=said.precedents)
    others = [
        replace(lesson, answers=(replace(said, weight=0.5),)),
        replace(lesson, answers=(replace(said, precedents=said.precedents[1:]),)),
        replace(lesson, opinion=LessonOpinion(0.0, said)),
        replace(lesson, opinion=LessonOpinion(0.0, fixed)),
        replace(lesson, shown_after=(fixed,)),
        replace(lesson, shown_after=(replace(fixed, weight=0.5),)),
    ]
    hashes = [hash_batch([one], known(shown)) for one in (lesson, *others)]
    hashes += [
        hash_batch([lesson], known(replace(shown, weight=0.5))),
        hash_batch([lesson], known(replace(shown, precedents=said.precedents[1:]))),
    ]
    assert len(set(hashes)) == len(hashes)


def test_the_batch_hash_names_lessons_answers_what_may_be_shown_and_what_teaches(policy: LoadedPolicy) -> None:
    lesson, fixed = facts(policy, answers=(reference(),)), known(material(CORRECTED, "Four!"))
    told: list[LessonAnswer] = list(lesson.answers)
    measured = Standing({(told[0].expert_id, REFERENCE, "math"): {Template.TURNS: Verdict(False, -0.1)}})
    hashes = [
        hash_batch([lesson], fixed),
        hash_batch([lesson], TAUGHT_BY_ALL),
        hash_batch([replace(lesson, answers=())], fixed),
        hash_batch([lesson], known(material(CORRECTED, "Four!"))),
        hash_batch([lesson], replace(fixed, standing=measured)),
    ]
    assert hashes[0] == hash_batch([lesson], fixed)
    assert all(first != second for first, second in pairwise(sorted(hashes)))
