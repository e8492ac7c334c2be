# What type checkers and editors read: the names that `__init__.py` loads on first use, and where they live.

from xlstm_unet_lab.data.dataset import load_dataset as load_dataset
from xlstm_unet_lab.data.prepare import prepare as prepare
from xlstm_unet_lab.data.registry import list_recipes as list_recipes
from xlstm_unet_lab.evaluation.report import evaluate as evaluate
from xlstm_unet_lab.figures.report_page import write_report as write_report
from xlstm_unet_lab.inference.files import predict_files as predict_files
from xlstm_unet_lab.inference.instances import instances_from_classes as instances_from_classes
from xlstm_unet_lab.inference.load import load_run as load_run
from xlstm_unet_lab.inference.predict import predict as predict
from xlstm_unet_lab.inference.predict import predict_probabilities as predict_probabilities
from xlstm_unet_lab.inference.predictor import Predictor as Predictor
from xlstm_unet_lab.inference.shipped import list_trained as list_trained
from xlstm_unet_lab.inference.shipped import trained as trained
from xlstm_unet_lab.models.presets import build as build
from xlstm_unet_lab.models.presets import list_models as list_models
from xlstm_unet_lab.models.published import load_published as load_published
from xlstm_unet_lab.models.published import published_config as published_config
from xlstm_unet_lab.models.unet import UNet as UNet
from xlstm_unet_lab.models.unet import UNetConfig as UNetConfig
from xlstm_unet_lab.models.vil_classifier import VisionLSTM as VisionLSTM
from xlstm_unet_lab.nnunet.results import load_predictor as load_predictor
from xlstm_unet_lab.overlays.description import overlay as overlay
from xlstm_unet_lab.overlays.description import overlay_case as overlay_case
from xlstm_unet_lab.training.config import TrainConfig as TrainConfig
from xlstm_unet_lab.training.fit import fit as fit

__version__: str
__all__: list[str]
