"""Decoding in company is decoding alone; what is drawn follows the distribution."""

import math

import torch

from services.policy.engines.decode import ATTENTION, DecodeRows, check_decoding, draw_tokens
from services.policy.model.modeling import LoadedPolicy, prefill_prompt, project


def draw(
    logits: torch.Tensor, uniforms: torch.Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    count = len(uniforms)
    return draw_tokens(
        logits.expand(count, -1).contiguous(),
        torch.full((count,), temperature),
        torch.full((count,), top_k),
        torch.full((count,), top_p),
        uniforms,
    )


def frequencies(ids: torch.Tensor, size: int) -> torch.Tensor:
    return torch.bincount(ids, minlength=size) / len(ids)


EVEN = (torch.arange(20_000) + 0.5) / 20_000


def test_drawing_inverts_the_distribution_at_a_uniform_number() -> None:
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(0)) * 3
    ids, logprobs = draw(logits, EVEN, temperature=0.7)
    expected = (logits[0] / 0.7).softmax(-1)
    assert float((frequencies(ids, 300) - expected).abs().max()) < 2e-4
    torch.testing.assert_close(logprobs, (logits[0] / 0.7).log_softmax(-1)[ids], atol=1e-5, rtol=0)


def test_top_k_and_top_p_narrow_the_draw_and_not_the_logprobs() -> None:
    probabilities = torch.tensor([0.05, 0.4, 0.3, 0.15, 0.1])
    ids, logprobs = draw(probabilities.log()[None], EVEN, top_k=2)
    torch.testing.assert_close(frequencies(ids, 5), torch.tensor([0, 4 / 7, 3 / 7, 0, 0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(logprobs, probabilities.log()[ids], atol=1e-5, rtol=0)
    ids, _ = draw(probabilities.log()[None], EVEN, top_p=0.75)
    torch.testing.assert_close(frequencies(ids, 5), torch.tensor([0, 0.4, 0.3, 0.15, 0]) / 0.85, atol=1e-3, rtol=0)


def test_temperature_zero_takes_the_likeliest_token_with_its_logprob_at_temperature_one() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    ids, logprobs = draw(logits, torch.tensor([0.0, 0.999]), temperature=0.0)
    assert ids.tolist() == [1, 1]
    torch.testing.assert_close(logprobs, logits[0].log_softmax(-1)[[1, 1]])


def test_a_token_without_probability_is_never_drawn() -> None:
    logits = torch.full((1, 600), -math.inf)
    logits[0, [3, 300]] = 0.0
    ids, _ = draw(logits, torch.tensor([0.0, 0.4999, 0.5, 0.99999994]))
    assert ids.tolist() == [3, 3, 300, 300]


def test_rows_that_come_and_go_compute_what_each_computes_alone(policy: LoadedPolicy) -> None:
    model = policy.model
    model.set_attn_implementation(ATTENTION)
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 250, (length,), generator=generator) for length in (5, 70, 12)]
    forced = torch.randint(3, 250, (8, 20), generator=generator).tolist()
    with torch.inference_mode():
        batch = DecodeRows(model, max_rows=8)
        names: list[int] = []  # the sequence that each row of the batch is
        prompt_of = [0, 0, 0, 1, 1, 2, 2, 2]
        position = [0] * 8

        def add(prompt: int, sequences: list[int]) -> None:
            batch.add(prefill_prompt(model, prompts[prompt]), len(sequences), max_new_tokens=20)
            names.extend(sequences)

        def remove(row: int) -> None:
            batch.remove(row)
            last = names.pop()
            if row < len(names):
                names[row] = last

        def step() -> None:
            logits = project(model, batch.step([forced[name][position[name]] for name in names]))
            for row, name in enumerate(names):
                position[name] += 1
                ids = torch.cat((prompts[prompt_of[name]], torch.tensor(forced[name][: position[name]])))
                plain = model(input_ids=ids[None]).logits[0, -1]
                torch.testing.assert_close(logits[row], plain, atol=1e-4, rtol=1e-4)

        add(0, [0, 1, 2])
        step()
        add(1, [3, 4])
        step()
        step()
        remove(0)
        step()
        add(2, [5])
        remove(names.index(1))
        remove(names.index(2))
        step()
        add(2, [6, 7])
        step()
        remove(names.index(3))
        remove(names.index(4))
        step()
        assert sorted(names) == [5, 6, 7]


def test_the_tiny_model_passes_the_check_of_decoding(policy: LoadedPolicy) -> None:
    policy.model.set_attn_implementation(ATTENTION)
    check_decoding(policy.model)
