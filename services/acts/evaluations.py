"""Starting an evaluation of a policy version."""

from services.acts.call import Call
from services.contracts.evaluations import Evaluation, EvaluationCreate
from services.jobs.maintain import train_sampling
from services.store.loop import evaluations


def start(call: Call, wanted: EvaluationCreate) -> Evaluation:
    """Plan an evaluation; its draws and verdicts come in the background.

    Errors: PolicyVersionNotFound (404), WeightsDeleted (409), NothingToEvaluate (422).
    """
    with call.begin() as act:
        row, _ = evaluations.create(act.session, act.lineage.id, wanted, train_sampling(call.settings))
        planned = act.keep(evaluations.view(act.session, row))
        act.record("evaluations.add", "evaluation", row.id)
        return planned
