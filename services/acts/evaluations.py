"""Starting an evaluation of a policy version, or a probe of the gap between student and teacher."""

from services.acts.call import Act, Call
from services.contracts.evaluations import Evaluation, EvaluationCreate, GapProbeCreate
from services.jobs.maintain import train_sampling
from services.store.loop import evaluations
from services.store.tables.loop import EvaluationRow


def start(call: Call, wanted: EvaluationCreate) -> Evaluation:
    """Plan an evaluation; its draws and verdicts come in the background.

    Errors: PolicyVersionNotFound (404), WeightsDeleted (409), NothingToEvaluate (422).
    """
    with call.begin() as act:
        row, _ = evaluations.create(act.session, act.lineage.id, wanted, train_sampling(call.settings))
        return _finish(act, row)


def start_gap_probe(call: Call, wanted: GapProbeCreate) -> Evaluation:
    """Plan a probe of the gap: train tasks answered plainly, and again with their reference shown first.

    Errors: NothingToEvaluate (422).
    """
    with call.begin() as act:
        row, _ = evaluations.create_gap_probe(
            act.session,
            act.lineage.id,
            num_tasks=wanted.num_tasks,
            num_samples=wanted.num_samples,
            seed=wanted.seed,
            sampling=train_sampling(call.settings),
        )
        return _finish(act, row)


def _finish(act: Act, row: EvaluationRow) -> Evaluation:
    planned = act.keep(evaluations.view(act.session, row))
    act.record("evaluations.add", "evaluation", row.id)
    return planned
