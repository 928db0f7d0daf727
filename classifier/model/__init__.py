from classifier.model.classifier import AllLogits, Classifier
from classifier.model.resnet import ResNet3D
from classifier.model.table import MODELS, build_model

__all__ = ["MODELS", "AllLogits", "Classifier", "ResNet3D", "build_model"]
