"""Exercises that answer: each check takes your function (or value), tries it, and says what is wrong if it is.

    checks.rollout(my_rollout)      # try it; the result counts in checks.report()
    checks.report("Ada")            # one line to hand in
    checks.contents()               # all exercises with chapter, difficulty and minutes

To add a check, write a function under `@exercise(chapter, level, minutes)` in maps.py or judging.py. It gets the
learner's answer, calls it through `ask`, and compares with `expect`, which knows the usual wrong results and the hint
that belongs to each. Add those wrong answers to tests/unit/test_checks.py.
"""

from . import judging, maps
from .engine import EXERCISES, LEVELS, case, contents, report, verify

# checks.rollout is the check of the exercise `rollout`, and so on for all of them
globals().update({name: exercise.check for name, exercise in EXERCISES.items()})
__all__ = ["EXERCISES", "LEVELS", "case", "contents", "judging", "maps", "report", "verify", *EXERCISES]
