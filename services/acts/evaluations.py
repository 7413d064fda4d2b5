"""Starting an evaluation of a policy version, or a probe of the gap between student and teacher."""

from services.acts.call import Act, Call
from services.contracts.evaluations import Evaluation, EvaluationCreate
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


def _finish(act: Act, row: EvaluationRow) -> Evaluation:
    planned = act.keep(evaluations.view(act.session, row))
    act.record("evaluations.add", "evaluation", row.id)
    return planned
