"""A master that has all parts of a lesson, as small as possible, for the tests of what is made from masters."""

from pathlib import Path

from xlstm_unet_lab.course.checks import all_exercises

NUMBERS = ("00.1", "00.2", "00.3", "00.4")
EXERCISE = """# %% [markdown]
# ### Exercise {one.number}: write `{one.reference.__name__}`
# *About {one.minutes} minutes, difficulty {one.difficulty} of 5.*

# %% exercise="{one.number}"
{signature}
    pass  ### SOLUTION

# %%
check("{one.number}", {one.reference.__name__})
"""
EXERCISES = "\n".join(
    EXERCISE.format(one=one, signature=one.solution.partition("\n")[0]) for one in map(all_exercises().get, NUMBERS)
)
TIME = (
    "**Time.** 1 minute of computing in profile `cpu` (measured on 2 cores, 0.4 GB of memory), 30 minutes of exercises."
)
LESSON = rf"""# %% [markdown] seconds={{"ci": 30, "cpu": 60, "gpu": 60}} gigabytes={{"ci": 2, "cpu": 2, "gpu": 2}}
# # 00 · An example
# **You will be able to** say what a lesson is made of. **You need** nothing.
#
# {TIME}
#
# **Words.** A [mask](../docs/glossary.md#mask) is a Boolean image.
#
# **Symbols.**
# * $P$, $\hat T_i$, $i$: the predicted pixels, the true ones of case $i$, its number.

# %%
import numpy as np
from xlstm_unet_lab.course import check
from xlstm_unet_lab.evaluation import metrics

# %% [markdown]
# The overlap is $$\mathrm{{overlap}} = |P \cap \hat{{T}}_i|.$$ It costs `$5`, or $5.

{EXERCISES}
# %% tags=["figure", "widget", "surprise"]
1

# %% tags=["figure", "independent", "nbval-check-output"]
print(2)

# %% tags=["figure"]
3

# %% [markdown]
# ## Key points
# ## What could go wrong
# Nothing.

# %% [markdown]
# ## An open question
# What is missing?

# %% [markdown]
# ## Further reading
# The page itself.

# %% [markdown] tags=["instructor"]
# Takes ten minutes.
"""


def write_lesson(root: Path, text: str = LESSON, name: str = "00_example.py") -> Path:
    """Write the master into root/solutions, beside the folders and pages that lessons link to; returns its path."""
    for folder in ("notebooks", "solutions", "docs"):
        (root / folder).mkdir(exist_ok=True)
    (root / "docs" / "glossary.md").write_text("# Glossary\n\n## mask\n\nWords.\n", encoding="utf-8")
    master = root / "solutions" / name
    master.write_text(text, encoding="utf-8")
    return master
