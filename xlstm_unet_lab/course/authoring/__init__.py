"""What stands beside author and instructor: lessons built, measured and handed out, classes reported."""
