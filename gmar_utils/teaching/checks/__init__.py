"""Exercises that answer: each check takes your function (or value), tries it, and says what is wrong if it is.

    checks.check_rollout(my_rollout)   # try it; the result counts in checks.report()
    checks.report("Ada")               # one line to hand in
    checks.contents()                  # all exercises with chapter, difficulty and minutes

To add a check, write `check_NAME` under `@exercise(chapter, level, minutes)` in the file of its chapters, and import it
here. It gets the learner's answer, calls it through `ask`, and compares with `expect`, which knows the usual wrong
results and the hint that belongs to each. Add those wrong answers to the tests, in tests/unit/teaching.
"""

from .attention import (
    check_attention,
    check_cls_map,
    check_laziness,
    check_residual,
    check_rollout,
    check_softmax,
    check_token_count,
    check_unused_rows,
    check_window,
)
from .engine import EXERCISES, LEVELS, case, contents, report, verify
from .gradients import (
    check_alpha_line,
    check_fuse,
    check_gmar,
    check_gmar_weights,
    check_gradcam,
    check_gradient_rollout,
    check_legrad_layer,
    check_my_method,
    check_tie,
)
from .judging import (
    check_area,
    check_average_drop,
    check_delete_patches,
    check_faithful_heads,
    check_fool_drop,
    check_iou,
    check_pointing,
    check_precision_average,
    check_randomised,
    check_rank_correlation,
)
from .replicating import (
    check_empty_accuracy,
    check_paired_interval,
    check_read_out,
    check_schedule,
    check_top_k,
    check_verdict,
)

__all__ = [
    "EXERCISES",
    "LEVELS",
    "case",
    "check_alpha_line",
    "check_area",
    "check_attention",
    "check_average_drop",
    "check_cls_map",
    "check_delete_patches",
    "check_empty_accuracy",
    "check_faithful_heads",
    "check_fool_drop",
    "check_fuse",
    "check_gmar",
    "check_gmar_weights",
    "check_gradcam",
    "check_gradient_rollout",
    "check_iou",
    "check_laziness",
    "check_legrad_layer",
    "check_my_method",
    "check_paired_interval",
    "check_pointing",
    "check_precision_average",
    "check_randomised",
    "check_rank_correlation",
    "check_read_out",
    "check_residual",
    "check_rollout",
    "check_schedule",
    "check_softmax",
    "check_tie",
    "check_token_count",
    "check_top_k",
    "check_unused_rows",
    "check_verdict",
    "check_window",
    "contents",
    "report",
    "verify",
]
