"""What there is to see of a case, described once, and four ways to see it.

The folder is not named `overlay` because `lab.overlay` is a function, which importing such a folder would replace.
"""
