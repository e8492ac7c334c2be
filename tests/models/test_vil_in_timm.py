"""What timm asks of every model, of the six names registered there: maps, heads, features, tracing, layer decay."""

import pytest
import timm
import torch
from timm.layers import get_channel_dim, get_spatial_dim
from timm.models import create_feature_extractor, get_graph_node_names, group_parameters
from timm.optim import param_groups_layer_decay

import xlstm_unet_lab as lab
from xlstm_unet_lab.models import vil_classifier

NAMES = list(vil_classifier.NAMED)
DIM, PATCH = 8, 16
names = pytest.mark.parametrize("name", NAMES)


def created(name, **changes):
    """A model of this name, narrow and with 4 blocks, whose norms and gates are away from their neutral start."""
    depth = {"v1": 4, "v2": 2}[vil_classifier.NAMED[name]["version"]]
    model = timm.create_model(name, **{"dim": DIM, "depth": depth, "num_classes": 42} | changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def images(*size, batch=2):
    return torch.randn(batch, 3, *(size or (32, 48)))


@names
def test_its_settings_name_what_is_there(name):
    model = created(name, num_classes=1000)
    settings, parameters = model.default_cfg, model.state_dict()
    assert settings["architecture"] == name and settings["num_classes"] == model.num_classes == 1000
    assert {f"{settings['classifier']}.weight", f"{settings['first_conv']}.weight"} <= parameters.keys()
    found = model.forward_features(images(*settings["input_size"][1:], batch=1))
    assert tuple(found.shape[axis] for axis in get_spatial_dim(model.output_fmt)) == settings["pool_size"]
    assert found.shape[get_channel_dim(model.output_fmt)] == model.num_features == DIM


@names
def test_pooling_and_head_can_be_left_out_and_put_back(name):
    model, image = created(name), images()
    features = model.forward_features(image)
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size) and model(image).shape == (2, 42)
    model.reset_classifier(0)
    assert torch.equal(model(image), pooled) and model.num_classes == 0
    model.reset_classifier(0, "")
    assert torch.equal(model(image), features) and features.shape == (2, DIM, 2, 3)
    model.reset_classifier(0)  # the pooling stays as it was
    assert torch.equal(model(image), features)
    model.reset_classifier(5, "ends")
    assert model(image).shape == (2, 5)


@names
def test_created_without_pooling_it_gives_the_map(name):
    model, image = created(name, num_classes=0, global_pool=""), images()
    assert torch.equal(model(image), model.forward_features(image)) and model(image).ndim == 4
    pooled = created(name, num_classes=0)
    assert pooled(image).shape == (2, pooled.head_hidden_size)


@names
def test_every_parameter_gets_a_gradient(name):
    model = created(name, drop_path_rate=0.1, drop_rate=0.1).train()
    torch.manual_seed(0)
    model(images(batch=8)).mean().backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


@names
def test_checkpointed_blocks_give_the_same_values_and_gradients(name):
    model, image = created(name), images()
    found = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        (logits := model(image)).square().mean().backward()
        found.append([logits, *(parameter.grad.clone() for parameter in model.parameters())])
    torch.testing.assert_close(found[0], found[1])


def test_checkpointed_blocks_are_computed_again():
    model, calls = created(NAMES[0]), []
    model.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    for enable, wanted in ((False, 1), (True, 3)):
        model.set_grad_checkpointing(enable)
        model(images()).sum().backward()
        assert len(calls) == wanted


@names
@pytest.mark.parametrize("norm", [False, True])
def test_intermediates_as_maps_and_as_tokens(name, norm):
    model, image = created(name), images()
    features, maps = model.forward_intermediates(image, norm=norm)
    assert torch.equal(features, model.forward_features(image))
    assert [tuple(x.shape) for x in maps] == [(2, DIM, 2, 3)] * len(model.feature_info)
    tokens = model.forward_intermediates(image, norm=norm, output_fmt="NLC", intermediates_only=True)
    for as_map, as_tokens in zip(maps, tokens, strict=True):
        assert torch.equal(as_map.flatten(2).mT, as_tokens)
    last = features.flatten(2).mT
    torch.testing.assert_close(tokens[-1], model.norm(last) if norm else last)


@names
def test_stopping_early_leaves_out_what_no_map_needs(name):
    model, image, calls = created(name), images(), []
    model.blocks[2].register_forward_hook(lambda *_: calls.append(1))
    whole = model.forward_intermediates(image, [0, -3])[1]
    assert len(calls) == 1
    features, maps = model.forward_intermediates(image, [0, -3], stop_early=True)
    assert len(calls) == 1 and torch.equal(features, maps[-1])
    assert all(torch.equal(x, y) for x, y in zip(whole, maps, strict=True))


@names
def test_features_only(name):
    whole = created(name)
    options = {"dim": DIM, "depth": len(whole.blocks) // (2 if whole.version == "v2" else 1), "features_only": True}
    for chosen, indices in (({}, 3), ({"out_indices": (0, 2)}, (0, 2)), ({"out_indices": (-3, -2)}, (-3, -2))):
        model = timm.create_model(name, **options, **chosen)
        model.model.load_state_dict(whole.state_dict(), strict=False)
        found, wanted = model.eval()(images()), whole.forward_intermediates(images(), indices)[1]
        assert [tuple(x.shape) for x in found] == [tuple(x.shape) for x in wanted]
        assert model.feature_info.channels() == [DIM] * len(wanted)
        assert model.feature_info.reduction() == [PATCH] * len(wanted)
        image = images(64, 32)
        for x, y in zip(model(image), whole.forward_intermediates(image, indices)[1], strict=True):
            torch.testing.assert_close(x, y)


@names
def test_pruning_keeps_what_the_maps_need(name):
    model, image = created(name, second_norm=True), images()
    wanted = model.forward_intermediates(image, [0, 2], intermediates_only=True)
    assert model.prune_intermediate_layers([0, -2], prune_norm=True) == [0, 2]
    assert len(model.blocks) == 3 and model.num_classes == 0
    left = {key.partition(".")[0] for key in model.state_dict()}
    assert left == {"position", "embedding", "blocks"}
    for x, y in zip(model.forward_intermediates(image, [0, 2], intermediates_only=True), wanted, strict=True):
        torch.testing.assert_close(x, y)
    torch.testing.assert_close(model(image), wanted[-1])


@names
def test_any_size_that_patches_divide(name):
    model = created(name, img_size=(64, 32))
    for size in ((32, 32), (64, 32), (16, 80)):
        assert model(images(*size)).shape == (2, 42)
        grid = tuple(extent // PATCH for extent in size)
        assert model.forward_features(images(*size)).shape == (2, DIM, *grid)


def graph_of(model):
    """The model as a graph of torch.fx, traced as timm traces."""
    (*_, last) = get_graph_node_names(model)[1]
    return create_feature_extractor(model, {last: "found"})


@names
def test_traced_by_fx_it_is_the_same_function(name):
    model = created(name, second_norm=True)
    graph = graph_of(model)
    for image in (images(), images(64, 32, batch=1)):  # sizes are no part of the graph
        assert torch.equal(graph(image)["found"], model(image))
    with pytest.raises(ValueError, match=r"image_size\[0\] is 40, not divisible by 16"):
        graph(images(40, 32))


@names
def test_traced_by_fx_it_can_be_trained(name):
    model = created(name)
    graph = graph_of(model).train()
    graph(images())["found"].mean().backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


@names
def test_parameters_are_grouped_by_depth(name):
    model = created(name)
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    assert {groups["position"], groups["embedding.weight"]} == {0}
    assert [groups[f"blocks.{n}.layer.up.weight"] for n in range(len(model.blocks))] == [1, 2, 3, 4]
    assert groups["norm.weight"] == 4 and groups["head.weight"] == 5
    scaled = param_groups_layer_decay(model, 0.05, model.no_weight_decay(), layer_decay=0.5)
    (of_position,) = (group for group in scaled if any(one is model.position for one in group["params"]))
    assert of_position["weight_decay"] == 0 and of_position["lr_scale"] == 0.5**5


@names
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_torchscript_is_refused_in_a_sentence(name):
    with pytest.raises(ValueError, match=r"TorchScript is not supported, .*use torch\.export"):
        torch.jit.script(created(name))


@pytest.mark.parametrize("encoder", ["vil_tiny_patch16_224", "vil2_tiny_patch16_224"])
def test_as_the_encoder_of_a_unet(encoder):
    facts = {"spatial_dims": 2, "in_channels": 2, "num_classes": 3, "patch_size": (32, 48)}
    model = lab.build("timm_unet", encoder=encoder, stem_width=8, deep_supervision=True, **facts)
    logits = model(torch.randn(1, 2, 32, 48))
    assert [tuple(x.shape) for x in logits] == [(1, 3, 32, 48), (1, 3, 2, 3), (1, 3, 2, 3)]
    sum(x.square().mean() for x in logits).backward()
    assert [name for name, x in model.named_parameters() if x.grad is None] == []
    assert model(torch.randn(1, 2, 64, 32))[0].shape == (1, 3, 64, 32)
    with pytest.raises(ValueError, match="16"):
        model(torch.randn(1, 2, 40, 32))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.reset_classifier(5, ""), "num_classes is 5 with global_pool='', expected 0, or .*'ends'"),
        (lambda model: model.reset_classifier(5, "avg"), "global_pool is 'avg': .*there are ends"),
        (lambda model: model.reset_classifier(-1), "num_classes is -1, expected a whole number from 0"),
        (lambda model: model.set_grad_checkpointing("yes"), "enable is 'yes', expected True or False"),
        (lambda model: model.prune_intermediate_layers([4]), "indices holds 4, expected numbers from -4 to 3"),
        (lambda model: model.forward_intermediates(images(), ["a"]), "indices holds 'a', expected numbers from -4"),
        (lambda model: model.forward_intermediates(images(), output_fmt="NHWC"), "output_fmt is 'NHWC': .*NCHW, NLC"),
        (lambda model: created(NAMES[0], drop_rate=1.0), "drop_rate is 1.0, expected a finite number at least 0 and"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(created(NAMES[0]))
