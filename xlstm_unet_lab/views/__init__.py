"""Pictures and widgets. Every picture carries a text that says what is to be seen in it."""
