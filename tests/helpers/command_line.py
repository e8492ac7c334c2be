"""What tests of the command line share."""

from typer.testing import CliRunner

from xlstm_unet_lab.cli import app

TRAIN = ("phantom_microscopy", "--model", "unet", "--model-option", "features=[4,8]", "--patch-size", "64,64")


def call(*arguments, code=0):
    """Run a command in this process and check its exit code."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{result.stdout}\n{result.stderr}\n{result.exception!r}"
    return result
