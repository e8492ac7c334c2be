"""The plain reference of lesson 06 against the released networks, and the package against the plain reference."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

import xlstm_unet_lab as lab
from xlstm_unet_lab.course.checks import published_reference as reference

NETWORKS = ("bot_2d", "bot_3d", "enc_2d", "enc_3d")
OPTIONS = [name for name in reference.FACTS if name != "variant"]


def config(facts):
    return lab.published_config(facts["variant"], **{name: facts[name] for name in OPTIONS}, deep_supervision=True)


def largest_difference(found, expected):
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_reference_is_the_released_network(shared_golden, name):
    facts = json.loads((shared_golden / name / "config.json").read_text())
    facts |= {"kernel_sizes": facts["kernels"], "encoder_blocks": facts["blocks"]}
    tensors = load_file(shared_golden / name / "tensors.safetensors")
    weights = reference.Weights(load_file(shared_golden / name / "weights.safetensors"))
    outputs = reference.network(weights, facts, tensors["input"].double())
    expected = [tensors[key].double() for key in sorted(tensors) if key.startswith("output")]
    assert largest_difference(outputs, expected) < 2e-5  # the released network's numbers are stored in float32


@pytest.mark.parametrize("variant", ["bot", "enc"])
@pytest.mark.parametrize("features", [(4, 4, 8, 8, 12), (4, 4, 4, 6, 6, 6)])
@pytest.mark.parametrize("form", ["recurrent", "parallel", "chunkwise"])
def test_the_package_is_the_reference(variant, features, form):
    stages = len(features)
    facts = reference.FACTS | {"variant": variant, "features": features, "kernel_sizes": ((3, 3),) * stages}
    facts |= {"strides": ((1, 1), *((2, 2),) * (stages - 1)), "decoder_blocks": (2,) * (stages - 1)}
    facts |= {"encoder_blocks": (2,) * stages, "patch_size": (64, 64)}
    weights, image = reference.Weights(seed=1), torch.randn(2, 1, 64, 64, dtype=torch.float64)
    expected = reference.network(weights, facts, image)
    model = lab.UNet(dataclasses.replace(config(facts), mlstm_form=form))
    lab.load_published(model.double(), reference.as_released(weights.state))
    with torch.no_grad():
        assert largest_difference(model(image), expected) < 1e-11


def test_the_golden_case_is_what_the_reference_gives():
    stored = load_file(reference.GOLDEN)
    state = {name.removeprefix("weights.module."): x for name, x in stored.items() if name.startswith("weights.")}
    outputs = reference.network(reference.Weights(state), reference.FACTS, stored["input"].double())
    expected = [stored[f"output.{level}"] for level in range(4)]
    assert all(x.dtype == torch.float64 for x in expected) and largest_difference(outputs, expected) < 1e-12
    assert reference.GOLDEN.stat().st_size < 300_000


def test_the_golden_case_can_be_made_anew():
    stored, made = load_file(reference.GOLDEN), reference.golden_case()
    assert stored.keys() == made.keys()
    for name, tensor in made.items():
        torch.testing.assert_close(tensor, stored[name], rtol=1e-6, atol=1e-6)


def test_no_weight_is_at_its_rest():
    """A norm of scale 1 or a gate of weight 0 would hide a mistake in how it is used."""
    weights = [x for name, x in load_file(reference.GOLDEN).items() if name.startswith("weights.")]
    assert all(x.std() > 1e-3 for x in weights)


def test_weights_are_refused():
    weights = reference.Weights({"a": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"a has shape \(2,\), expected \(3,\)"):
        weights("a", 3)
    with pytest.raises(KeyError, match="b"):
        weights("b", 3)
