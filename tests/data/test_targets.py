"""Classes and regions: what the channels of an output mean."""

import json
from dataclasses import asdict

import pytest
import torch

from xlstm_unet_lab.data.targets import Targets

CLASSES = Targets.classes({"background": 0, "cell": 1, "rim": 2})
REGIONS = Targets(("whole", "core", "enhancing"), ((1, 2, 3), (1, 3), (3,)), painted=(2, 1, 3))


def test_classes():
    assert CLASSES.exclusive and CLASSES.foreground == {"cell": (1,), "rim": (2,)}
    logits = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    torch.testing.assert_close(CLASSES.probabilities(logits).sum(0), torch.ones(2))
    assert CLASSES.labels(CLASSES.probabilities(logits)).tolist() == [0, 1]


def test_classes_keep_label_values_that_skip_numbers():
    assert Targets.classes({"background": 0, "liver": 6}).labels(torch.tensor([[0.2], [0.8]])).tolist() == [6]


def test_regions():
    assert not REGIONS.exclusive and list(REGIONS.foreground) == ["whole", "core", "enhancing"]
    logits = torch.tensor([[-1.0, 1, 1, 1], [-1, -1, 1, 1], [-1, -1, -1, 1]])
    probabilities = REGIONS.probabilities(logits)
    torch.testing.assert_close(probabilities, torch.sigmoid(logits))
    assert REGIONS.labels(probabilities).tolist() == [0, 2, 1, 3]


@pytest.mark.parametrize("targets", [CLASSES, REGIONS])
def test_one_hot_and_back(targets):
    """Painting the one-hot form of a label gives the label: the regions tell every label apart."""
    label = torch.randint(len(targets.names) if targets.exclusive else 4, (2, 5, 6), generator=torch.manual_seed(0))
    one_hot = targets.one_hot(label)
    assert one_hot.shape == (2, len(targets.names), 5, 6) and one_hot.dtype == torch.float32
    assert torch.equal(torch.stack([targets.labels(channels) for channels in one_hot]), label)


@pytest.mark.parametrize("targets", [CLASSES, REGIONS])
def test_through_json(targets):
    assert Targets.from_json(json.loads(json.dumps(asdict(targets)))) == targets


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((("a", "b"), ((0,),)), "as many entries of each kind.*'names': 2, 'values': 1"),
        (((), ()), "at least one"),
        ((("a",), ((1,),), (1, 2)), "'painted': 2"),
        ((("a",), ((0, 1),), (1,)), "covers labels above 0"),
    ],
)
def test_bad_targets(arguments, message):
    with pytest.raises(ValueError, match=message):
        Targets(*arguments)
