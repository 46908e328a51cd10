from tiny.obedience import evaluate
from tiny.scenes import HELD_OUT
from wan import Pipeline


def test_the_shipped_model_shows_what_unseen_prompts_say():
    """Every combination that training left out, in both languages, with the default settings: 19 of 20 must obey."""
    pipeline = Pipeline.from_checkpoint("models/tiny")
    verdicts = evaluate(lambda prompt, seed: pipeline(prompt, seed=seed).frames, count=len(HELD_OUT))
    wrong = [str(verdict) for verdict in verdicts if not verdict.obeys]
    assert len(wrong) <= len(verdicts) / 20, wrong
