from classifier.model.classifier import Classifier, Everything
from classifier.model.hemispheres import Hemispheres
from classifier.model.resnet import ResNet3D
from classifier.model.table import MODELS, build_model

__all__ = ["MODELS", "Classifier", "Everything", "Hemispheres", "ResNet3D", "build_model"]
