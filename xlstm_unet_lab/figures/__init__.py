"""Pictures of cases, scores and trainings. Every picture carries a text that says what is to be seen in it."""
