"""Rows as tensors: a micro-batch padded to one length."""

import math
from collections.abc import Mapping, Sequence
from uuid import UUID

import torch
from torch import Tensor

from services.contracts.updates import TermKind
from trainer.batch.rows import Context, ImitationRow, Row, Source
from trainer.config import TrainerConfig
from trainer.losses.student import Rollouts
from trainer.losses.terms import DrawnTerm, Label, PartialTerm, Samples, Term, TopK, WholeTerm
from trainer.objectives.base import TermSource
from trainer.step.plan import SPANS, Plan
from trainer.step.reading import read_teacher
from trainer.step.state import TrainerState
from trainer.step.teacher import Teacher, read_under_contexts


def stack_rows(micro: Sequence[Row], emphasis: Mapping[UUID, float], device: torch.device) -> tuple[Rollouts, Tensor]:
    """The rows as padded tensors, and which of their tokens exist [B, T]."""
    shape = (len(micro), max(len(row.token_ids) for row in micro))
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
    exists, sampler = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape)
    for index, row in enumerate(micro):
        length = len(row.token_ids)
        ids[index, :length] = torch.tensor(row.token_ids)
        mask[index, :length] = torch.tensor(row.action_mask)
        exists[index, :length] = True
        if row.sampler_logprobs is not None:
            sampler[index, :length] = torch.tensor(row.sampler_logprobs)
    rollouts = Rollouts(
        token_ids=ids.to(device),
        action_mask=mask.to(device),
        temperature=torch.tensor([row.temperature for row in micro], device=device),
        sampler_logprobs=sampler.to(device),
        credited=torch.tensor([row.credited for row in micro], device=device),
        emphasis=torch.tensor([emphasis[row.lesson_id] for row in micro], device=device),
    )
    return rollouts, exists.to(device)


def stack_texts(
    rows: Sequence[Row], texts: Sequence[ImitationRow], emphasis: Mapping[UUID, float], device: torch.device
) -> tuple[Rollouts, Tensor]:
    """Texts to imitate, stacked as if they were rollouts, and which of their tokens exist [B, T]."""
    shape = (len(texts), max(len(text.token_ids) for text in texts))
    ids, learn = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
    exists = torch.zeros(shape, dtype=torch.bool)
    for index, text in enumerate(texts):
        ids[index, : len(text.token_ids)] = torch.tensor(text.token_ids)
        exists[index, : len(text.token_ids)] = True
        learn[index, : len(text.learned)] = torch.tensor(text.learned)
    stacked = Rollouts(
        token_ids=ids.to(device),
        action_mask=learn.to(device),
        temperature=torch.tensor([row.temperature for row in rows], device=device),
        sampler_logprobs=torch.zeros(shape, device=device),
        credited=torch.zeros(len(texts), dtype=torch.bool, device=device),
        emphasis=torch.tensor([emphasis[row.lesson_id] for row in rows], device=device),
    )
    return stacked, exists.to(device)


def build_terms(
    state: TrainerState,
    teacher: Teacher,
    micro: Sequence[Row],
    rollouts: Rollouts,
    exists: Tensor,
    plan: Plan,
    config: TrainerConfig,
    teacher_temperature: float,
) -> tuple[list[Term], list[TermSource]]:
    """The experts' distributions on the micro-batch, one term per expert, and where each came from."""
    built: list[tuple[Term, TermSource]] = []
    for on_spans in (False, True):
        of_row = [[context for context in row.contexts if bool(context.spans) is on_spans] for row in micro]
        for place in range(max(map(len, of_row))):
            contexts = [own[place] if place < len(own) else None for own in of_row]
            hidden = read_under_contexts(state.model, teacher, contexts, rollouts.token_ids, exists)
            expert = read_teacher(state.model, hidden, teacher_temperature, config.fused)
            if on_spans:
                weights, rows = _weigh_spans(micro, contexts, rollouts)
                term: Term = PartialTerm(SPANS, expert, weights, config.partial_share, plan.partial[SPANS])
            else:
                rows = tuple(
                    None if context is None else (context.source, context.weight, row.num_actions)
                    for row, context in zip(micro, contexts, strict=True)
                )
                own_weights = [0.0 if context is None else context.weight for context in contexts]
                term = WholeTerm("conditioned", expert, torch.tensor(own_weights, device=state.device))
            hashes = tuple(None if context is None else context.sha256 for context in contexts)
            built.append((term, TermSource(TermKind.CONDITIONED, rows, hashes)))
    built += [_top_k_term(name, micro, rollouts, state.device) for name in _experts(micro, "top_k")]
    for name in _experts(micro, "samples"):
        built += _sample_terms(name, micro, rollouts, plan, config, state.device)
    built += [_label_term(name, micro, rollouts, plan, config, state.device) for name in _experts(micro, "labels")]
    return [term for term, _ in built], [source for _, source in built]


def _weigh_spans(
    micro: Sequence[Row], contexts: Sequence[Context | None], rollouts: Rollouts
) -> tuple[Tensor, tuple[tuple[Source, float, int] | None, ...]]:
    """The weights [B, T] of contexts about some tokens only, and where they came from."""
    weights = torch.zeros(rollouts.token_ids.shape)
    rows: list[tuple[Source, float, int] | None] = []
    for index, (row, context) in enumerate(zip(micro, contexts, strict=True)):
        places = () if context is None else row.spoken_about(context)
        for step in places:
            weights[index, step] = context.weight if context is not None else 0.0
        rows.append(None if context is None else (context.source, context.weight, len(places)))
    return weights.to(rollouts.token_ids.device), tuple(rows)


def _experts(micro: Sequence[Row], kind: str) -> list[str]:
    return sorted({one.expert for row in micro for one in getattr(row, kind)})


def _top_k_term(name: str, micro: Sequence[Row], rollouts: Rollouts, device: torch.device) -> tuple[Term, TermSource]:
    found = [next((one for one in row.top_k if one.expert == name), None) for row in micro]
    width = max(len(one.token_ids[0]) for one in found if one is not None)
    shape = (*rollouts.token_ids.shape, width)
    ids, logprobs = torch.zeros(shape, dtype=torch.long), torch.full(shape, -math.inf)
    tail = torch.full(shape[:2], -math.inf)
    for index, one in enumerate(found):
        if one is not None:
            length, own = len(one.token_ids), len(one.token_ids[0])
            ids[index, :length, :own] = torch.tensor(one.token_ids)
            logprobs[index, :length, :own] = torch.tensor(one.logprobs)
            tail[index, :length] = torch.tensor(one.tail_mass).log()
    weights = torch.tensor([0.0 if one is None else one.weight for one in found], device=device)
    rows = tuple(
        None if one is None else (one.source, one.weight, row.num_actions)
        for row, one in zip(micro, found, strict=True)
    )
    expert = TopK(ids.to(device), logprobs.to(device), tail.to(device))
    return WholeTerm(f"topk:{name}", expert, weights), TermSource(TermKind.TOPK, rows, (None,) * len(micro))


def _sample_terms(
    name: str, micro: Sequence[Row], rollouts: Rollouts, plan: Plan, config: TrainerConfig, device: torch.device
) -> list[tuple[Term, TermSource]]:
    """A black-box expert's samples: over the whole rollout, at places drawn at random, or at places it was given."""
    terms: list[tuple[Term, TermSource]] = []
    for way in ("whole", "drawn", "partial"):
        found = []
        for row in micro:
            one = next((one for one in row.samples if one.expert == name), None)
            own_way = "" if one is None else "whole" if one.whole else "drawn" if one.probabilities else "partial"
            found.append(one if own_way == way else None)
        if not any(found):
            continue
        width = max(len(ids) for one in found if one is not None for ids in one.tokens.values())
        shape = rollouts.token_ids.shape
        ids = torch.zeros((*shape, width), dtype=torch.long)
        valid = torch.zeros((*shape, width), dtype=torch.bool)
        probability = torch.ones(shape)
        for index, one in enumerate(found):
            for step, drawn in one.tokens.items() if one is not None else ():
                ids[index, step, : len(drawn)] = torch.tensor(drawn)
                valid[index, step, : len(drawn)] = True
                if one is not None and one.probabilities:
                    probability[index, step] = one.probabilities[step]
        expert = Samples(ids.to(device), valid.to(device))
        weights = torch.tensor([0.0 if one is None else one.weight for one in found], device=device)
        spoken = valid.any(-1).to(device)
        label, share, count = f"samples:{name}", config.partial_share, plan.partial.get(f"samples:{name}", 0)
        term: Term
        if way == "whole":
            term = WholeTerm(label, expert, weights)
        elif way == "drawn":
            term = DrawnTerm(label, expert, weights, spoken, probability.to(device), share, count)
        else:
            term = PartialTerm(label, expert, weights[:, None] * spoken, share, count)
        rows = tuple(None if one is None else (one.source, one.weight, len(one.tokens)) for one in found)
        terms.append((term, TermSource(TermKind.SAMPLES, rows, (None,) * len(micro))))
    return terms


def _label_term(
    name: str, micro: Sequence[Row], rollouts: Rollouts, plan: Plan, config: TrainerConfig, device: torch.device
) -> tuple[Term, TermSource]:
    found = [next((one for one in row.labels if one.expert == name), None) for row in micro]
    ids = torch.zeros(rollouts.token_ids.shape, dtype=torch.long)
    weights = torch.zeros(rollouts.token_ids.shape)
    for index, one in enumerate(found):
        if one is not None:
            ids[index, one.step] = one.token_id
            weights[index, one.step] = one.weight
    label = f"label:{name}"
    term = PartialTerm(label, Label(ids.to(device)), weights.to(device), config.partial_share, plan.partial[label])
    rows = tuple(None if one is None else (one.source, one.weight, 1) for one in found)
    return term, TermSource(TermKind.LABEL, rows, (None,) * len(micro))
