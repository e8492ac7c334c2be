"""Networks that leave: the table in docs/exporting.md, cell by cell."""

import copy
import importlib.util
import io

import pytest
import torch
from places import REPOSITORY
from torch.export import Dim

import xlstm_unet_lab as lab
from xlstm_unet_lab.ops import scan_order
from xlstm_unet_lab.ops.selective_scan import selective_scan

PAGE = (REPOSITORY / "docs" / "exporting.md").read_text(encoding="utf-8")
(_, *NETWORKS), _, *ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("|")
]
CELLS = [(tool, name, cell) for tool, *cells in ROWS for name, cell in zip(NETWORKS, cells, strict=True)]


def build(column: str, spatial_dims: int = 2) -> torch.nn.Module:
    """The small network of a column of the table."""
    name, _, form = column.partition(" with ")
    assert form in ("", '`mlstm_form="chunkwise"`')
    options = {"mlstm_form": "chunkwise"} if form else {}
    sizes = {"patch_size": (16,) * spatial_dims, "features": [4, 8]}
    return lab.build(name, spatial_dims=spatial_dims, in_channels=1, num_classes=2, **sizes, **options).eval()


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def assert_same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def exported(network):
    x = images(2, 1, 16, 16)
    assert_same(torch.export.export(network, (x,)).module()(x), network(x))


def exported_with_open_sizes(network):
    open_sizes = {0: Dim("batch", min=1, max=16), 2: Dim("height", min=8, max=64), 3: Dim("width", min=8, max=64)}
    with torch.no_grad():
        program = torch.export.export(network, (images(2, 1, 16, 12),), dynamic_shapes=(open_sizes,)).module()
        for shape in ((1, 1, 16, 12), (3, 1, 17, 22), (2, 1, 9, 40)):
            assert_same(program(images(*shape)), network(images(*shape)))


def traced(network):
    with torch.no_grad():
        program = torch.jit.trace(network, images(2, 1, 16, 16))
        assert_same(program(images(5, 1, 16, 16)), network(images(5, 1, 16, 16)))


def to_onnx(network):
    def export():
        file = io.BytesIO()
        torch.onnx.export(network, (images(1, 1, 16, 12),), file, dynamo=False)
        return file.getvalue()

    if importlib.util.find_spec("onnx"):
        assert_answers_in_onnx(export(), network, images(1, 1, 16, 12))
    else:  # the package is asked for once every operation is converted
        with pytest.raises(torch.onnx.OnnxExporterError, match="onnx is not installed"):
            export()


def to_onnx_through_export(network, shapes=((2, 1, 16, 12),), **options):
    pytest.importorskip("onnxscript", reason="dynamo=True needs onnxscript, which does not come with this kit")
    with torch.no_grad():
        try:
            program = torch.onnx.export(network, (images(2, 1, 16, 12),), dynamo=True, verbose=False, **options)
        except torch.onnx.OnnxExporterError as error:
            raise error.__cause__ from None
    for shape in shapes:
        assert_answers_in_onnx(program.model_proto.SerializeToString(), network, images(*shape))


def to_onnx_with_open_sizes(network):
    open_sizes = {0: Dim("batch", min=1, max=16), 2: Dim("height", min=8, max=64), 3: Dim("width", min=8, max=64)}
    shapes = (1, 1, 16, 12), (5, 1, 16, 12), (3, 1, 17, 22), (2, 1, 9, 40)
    to_onnx_through_export(network, shapes, dynamic_shapes=(open_sizes,))


RUNTIME = "onnxruntime"  # none of the kit's own dependencies; used where it is there


def assert_answers_in_onnx(model: bytes, network, x):
    if importlib.util.find_spec(RUNTIME) is None:
        return
    session = importlib.import_module(RUNTIME).InferenceSession(model, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert_same(torch.from_numpy(found), network(x).detach())


def mapped(network):
    x = images(3, 1, 16, 16)
    assert_same(torch.func.vmap(lambda image: network(image[None])[0])(x), network(x))


def gradient_taken(network):
    x = images(2, 1, 16, 16).requires_grad_()
    (wanted,) = torch.autograd.grad(network(x).square().sum(), x)
    assert_same(torch.func.grad(lambda x: network(x).square().sum())(x.detach()), wanted)


def pushed_forward(network):
    x, direction = images(1, 1, 16, 16).double().requires_grad_(), images(1, 1, 16, 16).double()
    network = network.double()
    _, along = torch.func.jvp(lambda x: network(x).square().sum(), (x.detach(),), (direction,))
    (gradient,) = torch.autograd.grad(network(x).square().sum(), x)
    assert_same(along, (gradient * direction).sum())


def laid_out(network):
    found = copy.deepcopy(network).to("meta")(images(2, 1, 16, 24).to("meta"))
    assert found.is_meta and found.shape == (2, 2, 16, 24)


TOOLS = {
    "`torch.export`": exported,
    "`torch.export`, batch, height and width left open": exported_with_open_sizes,
    "`torch.jit.trace`, then another batch size": traced,
    "`torch.onnx.export`, `dynamo=False`": to_onnx,
    "`torch.onnx.export`, `dynamo=True`": to_onnx_through_export,
    "`torch.onnx.export`, `dynamo=True`, batch, height and width left open": to_onnx_with_open_sizes,
    "`torch.func.vmap`": mapped,
    "`torch.func.grad`": gradient_taken,
    "`torch.func.jvp`": pushed_forward,
    "the meta device": laid_out,
}


@pytest.mark.filterwarnings("ignore")  # torch's, about its own tools
@pytest.mark.parametrize(("tool", "column", "cell"), [cell for cell in CELLS if "left open" not in cell[0]])
def test_the_table_says_what_works(tool, column, cell):
    hold_to_the_cell(tool, column, cell)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("tool", "column", "cell"), [cell for cell in CELLS if "left open" in cell[0]])
def test_the_table_says_where_sizes_may_be_left_open(tool, column, cell):
    hold_to_the_cell(tool, column, cell)


def hold_to_the_cell(tool, column, cell):
    torch.manual_seed(0)
    network = build(column)
    if cell == "yes":
        TOOLS[tool](network)
    else:
        assert cell == "refused"
        with pytest.raises(ValueError, match=r"^form 'chunkwise' has a gradient .*in build mlstm_form=.parallel."):
            TOOLS[tool](network)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("column", ["xlstm_unet_enc", "u_mamba_enc"])
def test_volumes_travel_too(column):
    torch.manual_seed(0)
    network, x = build(column, spatial_dims=3), images(2, 1, 16, 8, 8)
    with torch.no_grad():
        wanted = network(x)
        assert_same(torch.jit.trace(network, x[:1])(x), wanted)
        assert_same(torch.func.vmap(lambda image: network(image[None])[0])(x), wanted)


@pytest.mark.parametrize("length", [1, 2, 7, 64])
def test_the_recorded_scan_is_the_scan(length):
    generator = torch.Generator().manual_seed(length)

    def drawn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    u, delta = drawn(2, 3, length), drawn(2, 3, length).exp()
    A, B, C, D, state = -drawn(3, 4).exp(), drawn(2, 4, length), drawn(2, 4, length), drawn(3), drawn(2, 3, 4)

    def scan(u, state):
        return selective_scan(u, delta, A, B, C, D, initial_state=state, return_state=True)

    found, gradients = torch.func.vjp(scan, u, state)  # torch.func records
    leaves = u.clone().requires_grad_(), state.clone().requires_grad_()
    wanted = scan(*leaves)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    weights = tuple(torch.ones_like(x) for x in wanted)
    torch.testing.assert_close(gradients(weights), torch.autograd.grad(wanted, leaves, weights), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("fastest", [0, 1, 2])
@pytest.mark.parametrize("reverse", [False, True])
def test_grids_of_open_sizes_are_walked_in_the_same_order(fastest, reverse, monkeypatch):
    grid, walk = images(2, 3, 4, 5, 6), scan_order.Traversal(fastest, reverse)
    wanted = scan_order.to_sequence(grid, walk)
    monkeypatch.setattr(scan_order, "has_open_size", lambda size: True)
    assert torch.equal(scan_order.to_sequence(grid, walk), wanted)
    assert torch.equal(scan_order.to_grid(wanted, (4, 5, 6), walk), grid)
