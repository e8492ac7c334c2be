"""The classes that a network learns of objects to tell apart: their interior, and the rim inside their outline."""

INTERIOR, BOUNDARY = 1, 2
LABELS = {"background": 0, "interior": INTERIOR, "boundary": BOUNDARY}
